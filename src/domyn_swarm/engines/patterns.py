"""Causes of death that engines share, as their logs tell them."""

from __future__ import annotations

from domyn_swarm.planning.context import FailurePattern


def pattern(regex: str, cause: str, hint: str, *, retryable: bool = False) -> FailurePattern:
    """One known cause. Not retryable: a restart cannot help, and the watchdog gives up at once."""
    return FailurePattern(pattern=regex, cause=cause, hint=hint, retryable=retryable)


PORT_TAKEN = pattern(
    r"(?i)address already in use|errno 98|couldn't bind|failed to bind",
    "its port is taken",
    "Another program listens there; set `port` to where a free range begins.",
    retryable=True,
)
MODULE_MISSING = pattern(
    r"ModuleNotFoundError: No module named",
    "a Python module is missing",
    "Install the engine where the replicas run.",
)
BAD_FLAG = pattern(
    r"(?i)error: unrecognized arguments|error: argument .*: (?:invalid|expected)|no such option"
    r"|unknown (?:argument|option|flag)",
    "the engine does not know an argument",
    "Check `args` against the engine's --help.",
)
NO_PROGRAM = pattern(
    r"(?i)command not found|No such file or directory: '[^']*'$|cannot start the engine",
    "the engine's program is not there",
    "Install it where the replicas run, or check `image` and the path.",
)
DISK_FULL = pattern(
    r"(?i)no space left on device|disk quota exceeded",
    "the disk is full",
    "Make room in the caches (HF_HOME, TMPDIR), or move them.",
    retryable=True,
)
HOST_MEMORY = pattern(
    r"(?i)MemoryError|std::bad_alloc|cannot allocate memory|oom-kill|Out of memory: Killed",
    "the machine ran out of memory",
    "Raise memory_gb, or load a smaller model.",
    retryable=True,
)
NOT_ALLOWED = pattern(
    r"PermissionError: \[Errno 13\]|Permission denied",
    "a file may not be read",
    "Check who may read the model and the caches.",
)

SHARED = (
    PORT_TAKEN,
    DISK_FULL,
    HOST_MEMORY,
    MODULE_MISSING,
    BAD_FLAG,
    NO_PROGRAM,
    NOT_ALLOWED,
)
