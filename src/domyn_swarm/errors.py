"""Every error a user can meet, with the exit code it ends the command with.

A `SwarmError` is printed as one message and its hint, without a traceback. Anything else that
reaches the top of a command is a bug of ours: traceback, exit code 70.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType

EXIT_OK = 0
EXIT_FAILED_ROWS = 7
EXIT_BUG = 70
EXIT_BUDGET_SPENT = 75  # of a worker, as EX_TEMPFAIL: what is left may be asked later
EXIT_TIMED_OUT = 124  # as `timeout` has it
EXIT_INTERRUPTED = 130


class SwarmError(Exception):
    """Something the user can act on. `message` says what is wrong, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Mistake:
    """One thing in a configuration that cannot be used, and what to write instead."""

    place: str  # `file:line`, a file, or a flag
    key: str  # dotted; empty where it is about no key
    message: str

    def __str__(self) -> str:
        flag = self.place.removeprefix("--").removeprefix("set ")
        key = "" if flag == self.key else self.key  # `--name` says it already
        return ": ".join(part for part in (self.place, key, self.message) if part)


class ConfigError(SwarmError):
    """What the user wrote (file, flag, environment) cannot be used; nothing was started."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message, hint=hint)
        self.mistakes = tuple(mistakes)  # of a file: each one by itself


class StateError(SwarmError):
    """The state database or a swarm's folder does not allow what was asked."""

    exit_code = 3


class NothingToRetry(StateError):
    """No row of a job is one of those that are to be asked again."""


class SwarmNotFound(StateError):
    """No swarm has that name; close names are suggested."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        close = get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else "See `domyn-swarm swarm list`."
        super().__init__(f"There is no swarm named {name!r}.", hint=hint)


class SwarmReplaced(StateError):
    """A newer swarm has taken the place of the one that was meant, or it was forgotten."""


class SwarmExists(StateError):
    """A live swarm already has that name."""


class JobNotFound(StateError):
    """No job has that id or external id."""


class PlatformError(SwarmError):
    """The platform (this machine, the scheduler, the cloud) refused or did not answer."""

    exit_code = 4


class CommandMissing(PlatformError):
    """A program that the platform needs is not on PATH."""


class MissingExtra(PlatformError):
    """An optional part of this program is not installed; the hint says how to install it."""


class SubmitRejected(PlatformError):
    """The platform refused the submission."""


class PlatformUnavailable(PlatformError):
    """The platform did not answer; what it runs is unknown."""


class SubmissionUnknown(PlatformUnavailable):
    """The platform did not answer a submission: it may have taken it, and may yet."""


class RunsElsewhere(PlatformError):
    """It was started on another host, cluster or workspace, which cannot be asked from here."""


class LaunchError(SwarmError):
    """The swarm did not come up; what was started has been stopped."""

    exit_code = 5


class NotReady(LaunchError):
    """Too few replicas answered before the deadline."""


class WaitTimedOut(SwarmError):
    """The time that was to be waited is over; the swarm is neither up nor failed, and goes on."""

    exit_code = EXIT_TIMED_OUT


class ReplicaFailed(LaunchError):
    """Replicas ended before they served; the message carries the diagnosis and the log path."""


class JobError(SwarmError):
    """A job cannot start or did not finish."""

    exit_code = 6


class BudgetSpent(JobError):
    """A job has cost as many GPU-hours as it may; what it has answered is kept."""

    exit_code = EXIT_BUDGET_SPENT


class InvalidInput(JobError):
    """The job's input cannot be used: refused before the first request."""

    exit_code = 2


class CheckpointMismatch(JobError):
    """A checkpoint exists, but for another job identity; the message names what changed."""


class CheckpointBusy(JobError):
    """Another driver holds this job's lease."""


class CheckpointLost(JobError):
    """The driver lost its job's lease: it neither sends nor writes any more."""


class TooManyFailures(JobError):
    """More rows failed than `--max-failures` allows; the commonest error is shown."""


class OutputExists(JobError):
    """The output path is taken by something this job did not write: refused before the first
    request.
    """

    exit_code = 2


def quantity(count: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: `1 row`, `2 rows`; `many` where an s does not make it."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def words_of(error: OSError, place: object = None) -> str:
    """What a disk or the system refused, in a sentence; at `place` if the error names no file."""
    where = error.filename or place
    what = "The system refused" if where is None else f"Cannot use {where}"
    return f"{what}: {error.strerror or str(error) or type(error).__name__}."


def disk_error(error: OSError, place: object = None) -> JobError:
    """What a disk or the system refused a job."""
    hint = "Check that disk and submit the same job again: what is finished is kept."
    return JobError(words_of(error, place), hint=hint)


# -- Ctrl-C in Python ----------------------------------------------------------------------------


def interrupted(message: str) -> KeyboardInterrupt:
    """A `KeyboardInterrupt` that says what was kept, to be raised `from None`.

    Where nothing catches it, a script ends with this one line instead of a traceback, and as ever
    by the signal. Notebooks show errors in their own way.
    """
    error = KeyboardInterrupt(message)
    before = sys.excepthook

    def hook(kind: type[BaseException], raised: BaseException, trace: TracebackType | None) -> None:
        if raised is not error:
            before(kind, raised, trace)
        elif sys.stderr is not None:
            sys.stderr.write(f"{message}\n")

    sys.excepthook = hook
    return error
