"""The account of a job over all its runs: one small file per run, next to the results that it paid
for.

`run-<generation>.json` is rewritten about once a second; for a killed run it records how many
requests were in flight and had to be sent again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from domyn_swarm.batch.outcomes.histograms import Dispatched, LatencyHistogram
from domyn_swarm.batch.outcomes.tally import Counters, Tally
from domyn_swarm.model import DispatchAccount, JobAccount, utc_now
from domyn_swarm.paths import write_private

_NAME = re.compile(r"^run-\d{6}\.json$")


class RunAccount(msgspec.Struct, frozen=True):
    """One run."""

    job_id: str
    counters: Counters
    wall_s: float  # since it began
    ended: bool
    override: dict[str, object] = {}  # parameters that this run changed (`job retry-failed`)
    retry_failed: bool = False  # it sent rows again that earlier runs had given up
    began_at: datetime | None = None
    rows_resumed: int = 0  # settled before it began
    resumed_from: dict[str, int] = {}  # of those: by other jobs, by their keys in the store

    @property
    def asked(self) -> bool:
        """Whether it had any rows to send."""
        one = self.counters
        return bool(one.requests or one.rows_answered or one.rows_failed or one.in_flight)


def account_of(
    tally: Tally,
    job_id: str,
    override: dict[str, object],
    *,
    ended: bool,
    retry_failed: bool = False,
) -> RunAccount:
    """The account of a run at this moment."""
    wall_s = round(time.monotonic() - tally.began, 3)
    began_at = utc_now() - timedelta(seconds=wall_s)
    return RunAccount(
        job_id,
        tally.counters(),
        wall_s,
        ended,
        override,
        retry_failed,
        began_at,
        tally.rows_resumed,
        dict(tally.resumed_from),
    )


def write_account(folder: Path, generation: int, account: RunAccount) -> None:
    """Write the account of one run."""
    path = folder / f"run-{generation:06d}.json"
    write_private(path, msgspec.json.encode(account).decode(), synced=account.ended)


def read_accounts(folder: Path) -> list[RunAccount]:
    """The accounts of all runs, the first run first; unreadable ones are left out."""
    accounts = []
    for path in sorted(path for path in folder.iterdir() if _NAME.match(path.name)):
        try:
            accounts.append(msgspec.json.decode(path.read_bytes(), type=RunAccount))
        except (OSError, ValueError):
            continue
    return accounts


def sum_up(accounts: Iterable[RunAccount]) -> JobAccount:
    """The sum of all runs that had rows to send. Rates are over the time in which a run was
    working.
    """
    accounts = [account for account in accounts if account.asked]
    counters = [account.counters for account in accounts]
    latency = LatencyHistogram()
    for one in counters:
        latency.merge(one.latency)
    wall_s = sum(account.wall_s for account in accounts)
    rows = sum(one.rows_answered + one.rows_failed for one in counters)
    tokens = sum(one.completion_tokens for one in counters)
    return JobAccount(
        runs=len(accounts),
        wall_s=round(wall_s, 3),
        rows_answered=sum(one.rows_answered for one in counters),
        rows_failed=sum(one.rows_failed for one in counters),
        requests=sum(one.requests for one in counters),
        retries=sum(one.retries for one in counters),
        turned_away=sum(one.turned_away for one in counters),
        lost_in_flight=sum(one.counters.in_flight for one in accounts if not one.ended),
        prompt_tokens=sum(one.prompt_tokens for one in counters),
        completion_tokens=tokens,
        rows_per_s=round(rows / wall_s, 3) if wall_s else None,
        completion_tokens_per_s=round(tokens / wall_s, 3) if wall_s else None,
        latency_p50_s=latency.quantile(0.5),
        latency_p90_s=latency.quantile(0.9),
        latency_p99_s=latency.quantile(0.99),
        dispatch=_dispatch(one.dispatched for one in counters),
    )


def _dispatch(counted: Iterable[Dispatched]) -> DispatchAccount | None:
    whole = Dispatched()
    for one in counted:
        whole.add(one, Dispatched())
    if whole == Dispatched():
        return None
    counters = whole.prompt_tokens_counted
    return DispatchAccount(
        groups=whole.groups,
        rows_grouped=whole.rows_grouped,
        requests_known=whole.requests_known,
        requests_new=whole.requests_new,
        requests_moved=whole.requests_moved,
        cached_share=round(whole.cached_tokens / counters, 4) if counters else None,
        switched_off=whole.switched_off,
    )
