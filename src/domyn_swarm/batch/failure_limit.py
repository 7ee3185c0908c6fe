"""When a run stops by itself: too many rows fail, or too many requests have to be repeated."""

from __future__ import annotations

from dataclasses import dataclass

from domyn_swarm.batch.tally import Tally
from domyn_swarm.errors import TooManyFailures

SHUT_OUT = 5  # rows turned away or without a reply in time, and not one answer
WHOLESALE_FAILURES = 50  # so many failed rows and not one answer: something is wrong with all
FREE_RETRIES = 1000  # of a run, before they are compared with its requests
RETRY_SHARE = 2 / 3  # of the requests: not one in three is answered


@dataclass(frozen=True)
class FailureLimit:
    """How many rows may fail before the run stops. None: only a wholesale failure stops it."""

    rows: int | None = None
    share: float | None = None  # of the settled rows of this run, judged from 50 rows on

    def reason_to_stop(self, tally: Tally) -> TooManyFailures | None:
        """Why the run must stop now, if it must."""
        if self._exceeded(tally):
            return _too_many_failed(tally)
        if tally.retries > max(FREE_RETRIES, RETRY_SHARE * tally.requests):
            return _too_many_repeated(tally)
        return None

    def reason_at_end(self, tally: Tally) -> TooManyFailures | None:
        """Why a run whose rows are all settled has failed, if it has: every row that was asked was
        turned away, and none of the job was ever answered. With fewer rows than `SHUT_OUT` that is
        no other than with more: a key, a URL or a model's name is wrong, and not the rows.
        """
        if self.rows is not None or self.share is not None or not tally.rows_shut_out:
            return None
        answered = tally.rows_answered + tally.rows_resumed - tally.resumed_failed
        late = any(signature.startswith("RequestTimeout") for signature in tally.failures)
        if answered or late or tally.rows_shut_out < tally.rows_failed:
            return None
        return _too_many_failed(tally)

    def _exceeded(self, tally: Tally) -> bool:
        failed, answered = tally.rows_failed, tally.rows_answered
        if self.rows is not None:
            return failed > self.rows
        if self.share is not None:
            settled = failed + answered
            return settled >= WHOLESALE_FAILURES and failed > self.share * settled
        all_of_them = failed >= WHOLESALE_FAILURES or tally.rows_shut_out >= SHUT_OUT
        return all_of_them and answered == 0


def _too_many_failed(tally: Tally) -> TooManyFailures:
    signature, count = tally.failures.most_common(1)[0]
    remedy = "Remove the cause"
    if tally.rows_shut_out and not tally.rows_answered:
        remedy = (
            "Check the key (of an endpoint that is no swarm's: OPENAI_API_KEY), the model's name, "
            "the URL and --timeout"
        )
    return TooManyFailures(
        f"{tally.rows_failed} rows failed and {tally.rows_answered} were answered; "
        f"the commonest error, {count} times: {signature}",
        hint=f"{remedy} and submit the same job again, or `domyn-swarm job resume` it: answered "
        "rows are kept, the failed ones are asked again. --max-failures sets how many may fail.",
    )


def _too_many_repeated(tally: Tally) -> TooManyFailures:
    commonest = tally.repeated.most_common(1)
    cause = (
        f"; the commonest cause, {commonest[0][1]} times: {commonest[0][0]}" if commonest else ""
    )
    return TooManyFailures(
        f"{tally.retries} of {tally.requests} requests had to be repeated{cause}",
        hint="The endpoint answers, but not one request in three. Remove the cause and submit the "
        "same job again: answered rows are kept.",
    )


DEFAULT_LIMIT = FailureLimit()
