"""Patterns that engines share: lines of a log, and the causes of an engine's end that they report.

A pattern must not match what a healthy engine prints (its configuration, warnings): a cause that is
not retryable takes the replica down permanently.
"""

from __future__ import annotations

from domyn_swarm.planning.plan import FailurePattern


def pattern(regex: str, cause: str, hint: str, *, retryable: bool = False) -> FailurePattern:
    """A known cause. If it is not `retryable`, the watchdog does not restart the engine."""
    return FailurePattern(pattern=regex, cause=cause, hint=hint, retryable=retryable)


SHARED = (
    pattern(
        r"(?i)address already in use|errno 98\b|couldn't bind|failed to bind",
        "its port is in use",
        "Another program listens on it; set `port` to the beginning of a free range.",
        retryable=True,
    ),
    pattern(
        r"(?i)no space left on device|disk quota exceeded",
        "the disk is full",
        "Free space in the caches (HF_HOME, TMPDIR), or move them.",
        retryable=True,
    ),
    pattern(
        r"No usable temporary directory",
        "no temporary file can be written",
        "Free space in /tmp on the node, or set TMPDIR to a folder that exists there.",
        retryable=True,
    ),
    pattern(
        r"AF_UNIX path too long|(?i:ipc path .* longer than|socket path .*too long)",
        "the path of a socket is too long",
        "Set TMPDIR in `env` to a short path: at most 40 characters, as engines append to it.",
    ),
    pattern(
        r"\bMemoryError\b|std::bad_alloc|(?i:cannot allocate memory|oom[-_ ]kill"
        r"|out of memory: killed)|^(?:.*: line \d+: +\d+ )?Killed\b",
        "the machine ran out of memory",
        "Raise memory_gb, or load a smaller model.",
        retryable=True,
    ),
    pattern(
        r"No module named",
        "a Python module is missing",
        "Install the engine where the replicas run, or set `image` to one that contains it.",
    ),
    pattern(
        r"(?i)error: unrecognized arguments|error: argument .*: (?:invalid|expected)"
        r"|error: the following arguments are required|no such option"
        r"|(?:unknown|invalid) (?:argument|option|flag)",
        "the engine does not know an argument",
        "Check `args` against the engine's --help.",
    ),
    pattern(
        r"(?i)command not found|executable file not found|exec: .*: not found",
        "the engine's program is missing",
        "Install it where the replicas run, or check `image` and the path.",
    ),
    pattern(
        r"PermissionError: \[Errno 13\]|: Permission denied$",
        "a file cannot be read",
        "Check the permissions of the model and of the caches.",
    ),
    pattern(
        r"FileNotFoundError: ",
        "a file is missing",
        "Check that `model` and every path in `args` exist on the node.",
    ),
)

# Models that come from the Hugging Face hub.
HUB = (
    pattern(
        r"(?i)gated repo|403 Client Error|access to model .* is restricted",
        "this account may not download the model",
        "Accept its licence on the hub, and export HF_TOKEN before `up`.",
    ),
    pattern(
        r"LocalEntryNotFoundError|OfflineModeIsEnabled|outgoing traffic has been disabled",
        "the model is not in the cache, and downloads are disabled",
        "Download it into HF_HOME beforehand, or set `model` to a path.",
    ),
    pattern(
        r"is not a local folder and is not a valid model identifier|RepositoryNotFoundError"
        r"|HFValidationError|Repo id must|does not appear to have a file named"
        r"|RevisionNotFoundError|Invalid repository ID or local directory",
        "the model was not found",
        "Check `model` and `revision`: a path that exists on the node, or an identifier of the hub "
        "(a private model needs HF_TOKEN exported before `up`).",
    ),
    pattern(
        r"We couldn't connect to '?https://huggingface\.co|HTTPSConnectionPool\(host='huggingface",
        "the model hub cannot be reached",
        "Nodes without internet access need the model in HF_HOME (with HF_HUB_OFFLINE=1), "
        "or `model` set to a path.",
        retryable=True,
    ),
    pattern(
        r"contains custom code which must be executed|requires you to execute the configuration"
        r"|Please pass the argument `trust_remote_code=True`",
        "the model contains code of its own",
        "Add --trust-remote-code to `args` if you trust it.",
    ),
)

# Engines on GPUs.
GPU = (
    pattern(
        r"torch\.(?:cuda\.)?OutOfMemoryError|(?:CUDA|HIP) out of memory"
        r"|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        "Use more GPUs per replica, a shorter context or a lower memory share in `args`.",
    ),
    pattern(
        r"(?i)no cuda gpus are available|found no nvidia driver|nvidia driver .* too old"
        r"|driver version is insufficient|libcuda\.so\S* cannot open"
        r"|failed to infer device type|invalid device ordinal",
        "no usable GPU was found",
        "Check the driver on that node, the container's GPU flag, and gpus_per_replica.",
    ),
    pattern(
        r"(?i)uncorrectable (?:nvlink|ecc) error|gpu has fallen off the bus"
        r"|cuda error: (?:unspecified launch failure|an illegal memory access)",
        "a GPU failed",
        "If it fails again on the same node, exclude that node and inform its administrators.",
        retryable=True,
    ),
    pattern(
        r"\bnccl\w*Error\b|NCCL error|Watchdog caught collective operation timeout",
        "the GPUs could not communicate (NCCL)",
        "Set NCCL_DEBUG=INFO in `env`; check the interconnect and NCCL_SOCKET_IFNAME.",
        retryable=True,
    ),
    pattern(
        r"Bfloat16 is only supported on GPUs",
        "the GPU does not support the data type",
        "Add --dtype half to `args`.",
    ),
    pattern(
        r"attention heads .*must be divisible|must be divisible by (?:tensor|tp)",
        "the model cannot be split over this number of GPUs",
        "Choose gpus_per_replica so that it divides the number of attention heads.",
    ),
)
