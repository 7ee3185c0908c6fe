"""The errors that users can cause, each with the exit code of a command that fails with it.

A `SwarmError` is printed as a message and a hint, without a traceback. Any other exception that
ends a command is a bug: it is printed with a traceback, and the exit code is 70.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ContextDecorator
from dataclasses import dataclass
from difflib import get_close_matches
from types import TracebackType

EXIT_OK = 0
EXIT_FAILED_ROWS = 7
EXIT_BUG = 70
EXIT_BUDGET_SPENT = 75  # of a worker, as EX_TEMPFAIL: the remaining rows may be sent later
EXIT_TIMED_OUT = 124  # as of the command `timeout`
EXIT_INTERRUPTED = 130


class SwarmError(Exception):
    """An error that the user can fix. `message` says what is wrong, `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Mistake:
    """One mistake in a configuration, with what to write instead."""

    place: str  # `file:line`, a file, or a flag
    key: str  # dotted; empty if the mistake does not concern a key
    message: str

    def __str__(self) -> str:
        flag = self.place.removeprefix("--").removeprefix("set ")
        key = "" if flag == self.key else self.key  # `--name` says it already
        return ": ".join(part for part in (self.place, key, self.message) if part)


class ConfigError(SwarmError):
    """A file, flag or environment variable is invalid; nothing was started."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message, hint=hint)
        self.mistakes = tuple(mistakes)  # in a file, one by one


class StateError(SwarmError):
    """The state database or a swarm's folder does not allow the operation."""

    exit_code = 3


class NothingToRetry(StateError):
    """A job has no rows of the classes to send again."""


class SwarmNotFound(StateError):
    """No swarm has that name; the hint suggests similar names."""

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        close = get_close_matches(name, list(known), n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else "See `domyn-swarm swarm list`."
        super().__init__(f"There is no swarm named {name!r}.", hint=hint)


class SwarmReplaced(StateError):
    """The swarm was replaced by a newer one of its name, or deleted."""


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
    """The platform did not answer a submission: it may have accepted it, or may still do so."""


class RunsElsewhere(PlatformError):
    """The swarm or job runs on another host, cluster or workspace, unreachable from here."""


class LaunchError(SwarmError):
    """The swarm did not come up; what was started has been stopped."""

    exit_code = 5


class NotReady(LaunchError):
    """Too few replicas answered before the deadline."""


class WaitTimedOut(SwarmError):
    """The time to wait is over, and the swarm has neither come up nor failed. It keeps running."""

    exit_code = EXIT_TIMED_OUT


class ReplicaFailed(LaunchError):
    """Replicas ended before they served; the message carries the diagnosis and the log path."""


class JobError(SwarmError):
    """A job cannot start or did not finish."""

    exit_code = 6


class BudgetSpent(JobError):
    """A job has used its budget of GPU hours; its answers are kept."""

    exit_code = EXIT_BUDGET_SPENT


class InvalidInput(JobError):
    """The job's input is invalid; refused before the first request."""

    exit_code = 2


class CheckpointBusy(JobError):
    """Another driver holds this job's lease."""


class CheckpointLost(JobError):
    """The driver lost its job's lease, and has stopped sending and writing."""


class TooManyFailures(JobError):
    """More rows failed than `--max-failures` allows; the message shows the most frequent error."""


class OutputExists(JobError):
    """The output path exists, and this job did not write it; refused before the first request."""

    exit_code = 2


def quantity(count: int, one: str, many: str | None = None) -> str:
    """A number with what it counts: `1 row`, `2 rows`; `many` where an s does not make it."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def words_of(error: OSError, place: object = None) -> str:
    """A sentence for an error of the operating system; `place` is used if it names no file."""
    where = error.filename or place
    what = "The system refused" if where is None else f"Cannot use {where}"
    return f"{what}: {error.strerror or str(error) or type(error).__name__}."


def disk_error(error: OSError, place: object = None) -> JobError:
    """The error of a job whose disk, or whose operating system, refused an operation."""
    hint = "Check that disk and submit the same job again: finished rows are kept."
    return JobError(words_of(error, place), hint=hint)


class WordsAlone(ContextDecorator):
    """Has calls of Python raise a `SwarmError` without its causes and the frames in our code: its
    words say all, and a notebook prints a page for those.
    """

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise a `SwarmError` anew."""
        if isinstance(error, SwarmError):
            raise error.with_traceback(None) from None


# -- Ctrl-C in Python ----------------------------------------------------------------------------


def interrupted(message: str) -> KeyboardInterrupt:
    """A `KeyboardInterrupt` with a message that says what was kept. Raise it `from None`.

    If nothing catches it, a script prints this line instead of a traceback, and ends by the signal
    as usual. Notebooks show errors in their own way.
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
