"""Causes of death, read from the ends of logs: each is known, none is seen where none is."""

from __future__ import annotations

import pytest

from domyn_swarm import engines
from domyn_swarm.engines.engine_protocol import diagnose
from domyn_swarm.watchdog_rules import diagnose as watchdog_diagnose

# What a healthy vLLM prints, in words that causes of death use too.
HEALTHY = """\
INFO 11-23 10:00:01 [api_server.py:1896] vLLM API server version 0.32.0
INFO 11-23 10:00:01 [arg_utils.py:779] HF_HUB_OFFLINE is True, replace model_id [o/m] to [/hf/m]
INFO 11-23 10:00:01 [utils.py:233] non-default args: {'trust_remote_code': True, 'port': 8000}
WARNING 11-23 10:00:02 [_custom_ops.py:20] Failed to import from vllm._C with \
ImportError('x.so.12: cannot open shared object file: No such file or directory')
WARNING 11-23 10:00:02 [model.py:9] User-specified max_model_len (48000) is greater than the \
derived max_model_len (32768). VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution.
WARNING 11-23 10:00:03 [fa_utils.py:80] Cannot use FA version 2: only supported on devices with \
compute capability >= 8
INFO 11-23 10:00:04 [core.py:75] Initializing a V1 LLM engine (v0.32.0) with config: model='o/m', \
tokenizer='o/m', trust_remote_code=False, dtype=torch.bfloat16, max_seq_len=2048, \
distributed_timeout_seconds=None, disable_custom_all_reduce=False, enable_prefix_caching=True
INFO 11-23 10:00:05 [pynccl.py:63] vLLM is using nccl==2.27.5
INFO 11-23 10:00:09 [gpu_worker.py:298] Available KV cache memory: 61.20 GiB
INFO:     Uvicorn running on http://0.0.0.0:8000
INFO:     10.0.0.1:51000 - "POST /v1/chat/completions HTTP/1.1" 200 OK
"""

# engine, the telling line, what the cause says
SHARED = [
    ("OSError: [Errno 98] Address already in use", "port is in use"),
    (
        "ERROR: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address "
        "already in use",
        "port is in use",
    ),
    ("OSError: [Errno 28] No space left on device", "disk is full"),
    (
        "FileNotFoundError: [Errno 2] No usable temporary directory found in ['/tmp', '/var/tmp']",
        "no temporary file",
    ),
    ("OSError: AF_UNIX path too long", "path of a socket"),
    ('zmq.error.ZMQError: ipc path "/long/x" is longer than 107 characters', "path of a socket"),
    ("MemoryError", "machine ran out of memory"),
    ("slurmstepd: error: Detected 1 oom_kill event in StepId=12.0.", "machine ran out of memory"),
    ("Killed", "machine ran out of memory"),
    ("run.sh: line 3:  4711 Killed                  python -m x", "machine ran out of memory"),
    ("/usr/bin/python3: No module named vllm", "Python module is missing"),
    ("ModuleNotFoundError: No module named 'vllm'", "Python module is missing"),
    ("api_server.py: error: unrecognized arguments: --nope 1", "does not know an argument"),
    ("x.py: error: argument --port: invalid int value: 'a'", "does not know an argument"),
    ("bash: line 1: serve: command not found", "program is missing"),
    ('FATAL:   "serve": executable file not found in $PATH', "program is missing"),
    ("PermissionError: [Errno 13] Permission denied: '/m/config.json'", "cannot be read"),
    ("FileNotFoundError: [Errno 2] No such file or directory: '/m/c.json'", "file is missing"),
]
HUB = [
    ("OSError: You are trying to access a gated repo.", "may not download"),
    ("huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the file", "not in the cache"),
    (
        "OSError: nope/x is not a local folder and is not a valid model identifier listed on",
        "model was not found",
    ),
    (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: x)",
        "model was not found",
    ),
    (
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files",
        "hub cannot be reached",
    ),
    (
        "ValueError: The repository o/m contains custom code which must be executed to load it.",
        "code of its own",
    ),
]
GPU = [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "GPU ran out"),
    ("RuntimeError: No CUDA GPUs are available", "no usable GPU"),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)",
        "no usable GPU",
    ),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "a GPU failed"),
    ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3384", "NCCL"),
    ("ncclSystemError: System call (e.g. socket, malloc) failed", "NCCL"),
    (
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        "data type",
    ),
    (
        "ValueError: Total number of attention heads (15) must be divisible by tensor parallel "
        "size (4).",
        "this number of GPUs",
    ),
]
OWN = [
    ("vllm", "x.py: error: unrecognized arguments: --shutdown-timeout 60", "vLLM is too old"),
    ("vllm", "ValueError: No available memory for the cache blocks. Try", "for the KV cache"),
    (
        "vllm",
        "ValueError: To serve at least one request with the models's max seq len (40960), (10.00 "
        "GiB KV cache is needed, which is larger than the available KV cache memory (1.25 GiB).",
        "for the KV cache",
    ),
    (
        "vllm",
        "ValueError: Free memory on device (10.1/79 GiB) on startup is less than desired GPU",
        "another program uses the GPU's memory",
    ),
    (
        "vllm",
        "ValueError: World size (8) is larger than the number of available GPUs (4) in this node.",
        "fewer GPUs",
    ),
    ("vllm", "ValueError: Model architectures ['X'] are not supported for now.", "architecture"),
    (
        "vllm",
        "  Value error, User-specified max_model_len (4096) is greater than the derived",
        "--max-model-len",
    ),
    ("vllm", "ray.exceptions.ActorDiedError: The actor died unexpectedly", "Ray could not"),
    (
        "sglang",
        "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",
        "for the KV cache",
    ),
    (
        "llamacpp",
        "0.00.005.358 E cmn  common_init_: failed to load model '/m/broken.gguf'",
        "cannot be loaded",
    ),
    (
        "llamacpp",
        "0.00.753.666 E llama_init_from_model: failed to initialize the context: failed to "
        "allocate buffer for kv cache",
        "fit into memory",
    ),
    (
        "llamacpp",
        "0.00.003.395 E srv start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1",
        "port is in use",
    ),
    ("sim", "simulated failure: as told", "configured to fail"),
]
LOGS = [
    *((engine, *case) for engine in engines.names() for case in SHARED),
    *((engine, *case) for engine in ("vllm", "sglang") for case in (*HUB, *GPU)),
    *OWN,
]


@pytest.mark.parametrize(("engine", "line", "cause"), LOGS)
def test_a_cause_is_read_from_the_log(engine: str, line: str, cause: str) -> None:
    patterns = engines.get(engine).failure_patterns
    log = f"{HEALTHY}{line}\nTraceback (most recent call last):\n  File 'x', line 1\n"
    found = diagnose(patterns, log)
    assert found is not None
    assert cause in found.cause
    assert found.line == line.strip()
    assert found.hint


@pytest.mark.parametrize("engine", engines.names())
def test_every_known_cause_is_tried_here(engine: str) -> None:
    patterns = engines.get(engine).failure_patterns
    lines = [line for name, line, _ in LOGS if name == engine]
    found = {one.cause for line in lines if (one := diagnose(patterns, line)) is not None}
    assert found == {known.cause for known in patterns}


@pytest.mark.parametrize("engine", engines.names())
def test_a_healthy_log_has_no_cause(engine: str) -> None:
    found = [diagnose(engines.get(engine).failure_patterns, line) for line in HEALTHY.splitlines()]
    assert found == [None] * len(found)


def test_the_last_line_that_tells_is_shown() -> None:
    found = diagnose(
        engines.get("command").failure_patterns,
        "ModuleNotFoundError: No module named 'a'\nModuleNotFoundError: No module named 'b'\nbye",
    )
    assert found is not None
    assert found.line.endswith("'b'")


# -- of this end, or not ---------------------------------------------------------------------------

MISSING = "No module named 'x'"
WARNED = f'WARNING 11-23 10:00:02 [x.py:1] Failed to import: ModuleNotFoundError("{MISSING}")'
NOTES = [
    WARNED,
    f"(EngineCore_DP0 pid=12) WARNING 11-23 10:00:02 [x.py:1] {MISSING}",
    f"INFO:     {MISSING}",
    f"2026-11-29 10:00:00,123 INFO worker.py:1 -- {MISSING}",
    f"[2026-11-29 10:00:00 TP0] WARNING x: {MISSING}",
    f"2026-11-29T10:00:00Z WARN x: {MISSING}",
    f"[rank0]:[W1129 10:00:00.123 ProcessGroupNCCL.cpp:1496] Warning: {MISSING}",
    f"0.00.753.666 W load: {MISSING}",
    f"/venv/x.py:12: UserWarning: {MISSING}",
]
TRACEBACK = f"""\
Traceback (most recent call last):
  File "/x/api.py", line 9, in <module>
    import x
ModuleNotFoundError: {MISSING}"""
ERRORS = [
    TRACEBACK,
    f"(EngineCore_DP0 pid=12) {TRACEBACK}",
    f"ERROR 11-23 10:00:02 [core.py:700] ModuleNotFoundError: {MISSING}",
    f"(EngineCore_DP0 pid=12) ERROR 11-23 10:00:02 [core.py:700] {MISSING}",
    f"0.00.753.666 E load: {MISSING}",
    f"[2026-11-29 10:00:00 TP0] ERROR: {MISSING}",
]
REQUESTS = [
    MISSING,
    f"prompt: why does Python say ModuleNotFoundError: {MISSING}?",
    "bash: line 1: serve: command not found",
    "x.txt: Permission denied",
]


def cause(log: str, *, served: bool = False, killed: bool = False) -> str | None:
    patterns = [known.model_dump() for known in engines.get("vllm").failure_patterns]
    found = watchdog_diagnose(patterns, f"{HEALTHY}{log}\n", served, killed)
    return None if found is None else str(found["cause"])


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("line", NOTES)
def test_what_an_engine_only_notes_is_no_cause(line: str, served: bool) -> None:
    assert cause(line, served=served) is None
    assert cause(f"{line}\nRuntimeError: y", served=served) is None


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("lines", ERRORS)
def test_errors_and_tracebacks_are(lines: str, served: bool) -> None:
    after = "\n".join([f"INFO:     {number}" for number in range(20)])
    for log in (lines, f"{lines}\n{after}", f"{WARNED}\n{lines}"):
        assert cause(log, served=served) == "a Python module is missing"


@pytest.mark.parametrize("line", REQUESTS)
def test_what_may_be_of_a_request_is_none(line: str) -> None:
    assert cause(line, served=True) is None
    assert (
        cause(f"ERROR 11-23 10:00:02 [x.py:1] bad request\nINFO: ok\n{line}", served=True) is None
    )
    assert cause(line) is not None  # an engine that never served says no more than this


def test_the_last_lines_of_one_that_never_served_count_unless_a_signal_ended_it() -> None:
    line = "cat: /etc/x: Permission denied"
    assert cause(line) == "a file cannot be read"
    assert cause(line, killed=True) is None
    assert cause("run.sh: line 3: 4711 Killed   python", killed=True) is not None
    loading = "\n".join(f"Loading shard {number}/30" for number in range(30))
    assert cause(f"{line}\n{loading}") is None
