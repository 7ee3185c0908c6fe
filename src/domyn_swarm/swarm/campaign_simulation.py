"""A campaign rehearsed in virtual time: a swarm of many replicas, one job, and the scheduler's
actions on both, as events in a queue.

The rules are imported from the code that runs on the nodes: when a replica drains before its time
limit (`slurm/script_contents`), how long that may take (its watchdog's spec), when an engine is
restarted (`Restarts`), when a job is signalled, runs again or ends (`slurm/job_runs`), to which
replica a row goes (`dispatch`), what a job costs (`jobs/gpu_hours`), and its forecast of the
remaining time (`forecaster`).

Rows in the slots of a replica are a renewal process (Cox, *Renewal Theory*, 1962): without
disturbances, work proceeds at a rate set by the number of slots, and no single row is simulated.
Where slots end (a limit, a preemption, the job's own end), the row in each is drawn: in proportion
to its cost, at a uniformly distributed point of it. The last rows of the job are events of their
own.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections import Counter, defaultdict
from itertools import accumulate

from domyn_swarm.backends.slurm.job_runs import JobRuns, following, was_fruitless, why_over
from domyn_swarm.backends.slurm.script_contents import job_warning_s
from domyn_swarm.batch.outcomes.forecaster import Forecaster
from domyn_swarm.batch.outcomes.strata import Strata, StratumSums, stratum_of
from domyn_swarm.batch.run.dispatch import Dispatch
from domyn_swarm.jobs.gpu_hours import Held
from domyn_swarm.swarm.campaign import (
    Assumptions,
    Ended,
    Forecasted,
    Rehearsed,
    Rules,
)
from domyn_swarm.swarm.campaign_slots import Cut, Slots
from domyn_swarm.watchdog_rules import Restarts, Spec

_HOUR_S = 3600.0
_REQUEUED_S = 120.0  # before Slurm restarts a requeued job (`cred_expire`)
_JOB_STARTS_S = 10.0  # start of a job's run: its program, its input
_LAST_ROUNDS = 2.0  # rows at the end that are simulated one by one
_LOOK_S = 600.0  # between two updates of the job's forecast
_LONGEST_S = 10 * 365 * 86_400.0
_IN_VAIN = 200  # allocations of each replica without progress of all of them together
_LENGTH = 1000  # characters: all prompts are alike here


class _Replica:
    """A place of the array; `life` identifies events of an earlier allocation."""

    __slots__ = ("life", "restarts", "served_from", "state")

    def __init__(self, spec: Spec) -> None:
        self.state = "queued"
        self.life = 0
        self.served_from = 0.0
        self.restarts = Restarts(spec)


class _Course:
    """One campaign from begin to end."""

    def __init__(self, given: Assumptions, rules: Rules) -> None:
        self._given = given
        self._rules = rules
        self._draws = random.Random(given.seed)  # noqa: S311 - no secret
        self._drain_s = min(rules.drain_s, rules.watchdog.drain_seconds)
        self._grace_s = min(given.grace_s, rules.watchdog.drain_seconds)
        self._slots = Slots(self._draws, given.in_flight, given.row_s, given.row_cv)
        self._now = 0.0
        self._events: list[tuple[float, int, str, int, int]] = []
        self._number = 0
        self._replicas = [_Replica(rules.watchdog) for _ in range(given.replicas)]
        self._states: Counter[str] = Counter()
        self._left_s = given.rows * given.row_s  # of slots
        self._nearest_s = self._left_s  # the minimum of that so far
        self._in_vain = 0  # allocations since then
        self._again = 0
        self._used_s = 0.0  # of replicas
        self._idle: defaultdict[str, float] = defaultdict(float)
        self._happened: Counter[str] = Counter()
        self._runs: JobRuns | None = None
        self._job_life = 0
        self._job_up = False
        self._job_from = 0.0  # when its run began
        self._settled_before = 0
        self._ended: Ended | None = None
        self._forecaster = Forecaster()
        self._strata = Strata()
        self._said: tuple[float, Forecasted] | None = None

    # -- events ----------------------------------------------------------------------------------

    def run(self) -> Rehearsed:
        """Run to the end."""
        for index in range(len(self._replicas)):
            self._wait_for(index, self._wait_s())
        self._at(self._wait_s(), "job begins", -1, 0)
        self._at(_LOOK_S, "look", -1, 0)
        while self._ended is None and self._events:
            at, _, kind, index, life = heapq.heappop(self._events)
            if self._last_rows_by(at):
                break
            self._pass_to(at)
            if self._ended is None:
                self._happen(kind, index, life)
            if self._ended is None and (at > _LONGEST_S or self._is_in_vain()):
                self._ended = "never"
        return self._result()

    def _happen(self, kind: str, index: int, life: int) -> None:
        if kind == "look":
            self._look()
        elif index < 0:
            if life == self._job_life:
                (self._job_begins if kind == "job begins" else self._job_stops)()
        elif life == self._replicas[index].life:
            act = {
                "begins": self._begins,
                "ready": self._ready,
                "fails": self._fails,
                "warned": lambda one: self._drains(one, "time limit", self._drain_s),
                "preempted": lambda one: self._drains(one, "preempted", self._grace_s),
                "over": self._over,
            }[kind]
            act(index)

    def _at(self, after_s: float, kind: str, index: int, life: int) -> None:
        if after_s < math.inf:
            self._number += 1
            heapq.heappush(self._events, (self._now + after_s, self._number, kind, index, life))

    def _pass_to(self, at: float) -> None:
        """Advance time without an event."""
        for_s = at - self._now
        working = self._states["working"]
        if self._job_up:
            self._left_s -= working * self._given.in_flight * for_s
        else:
            self._idle["job between two runs"] += working * for_s
        self._idle["starting"] += self._states["starting"] * for_s
        self._idle["engine starts again"] += self._states["backing off"] * for_s
        up = sum(self._states.values())
        self._used_s += up * for_s
        self._now = at
        budget = self._given.max_gpu_hours
        gpus = self._given.gpus_per_replica
        if budget is not None and Held(gpus, 1).hours(self._used_s) >= budget:
            self._ended = "budget"

    def _is_in_vain(self) -> bool:
        """Whether repeated allocations make no progress."""
        if self._left_s < self._nearest_s:
            self._nearest_s, self._in_vain = self._left_s, 0
        return self._in_vain > _IN_VAIN * len(self._replicas)

    # -- replicas --------------------------------------------------------------------------------

    def _wait_s(self) -> float:
        waits = self._given.wait_s
        if len(waits) > 1:
            return self._draws.choice(waits)
        return self._draws.expovariate(1 / waits[0]) if waits[0] else 0.0

    def _rate_s(self, per_h: float) -> float:
        return self._draws.expovariate(per_h / _HOUR_S) if per_h else math.inf

    def _wait_for(self, index: int, after_s: float) -> None:
        self._at(after_s, "begins", index, self._replicas[index].life)

    def _to(self, index: int, state: str) -> None:
        one = self._replicas[index]
        if one.state != "queued":
            self._states[one.state] -= 1
        if state != "queued":
            self._states[state] += 1
        one.state = state

    def _begins(self, index: int) -> None:
        """The replica gets its GPUs."""
        given, life = self._given, self._replicas[index].life
        self._happened["allocations"] += 1
        self._in_vain += 1
        self._to(index, "starting")
        limit_s = math.inf
        if given.limit_s is not None:
            limit_s = self._draws.uniform(*given.limit_s)
        self._at(given.start_s, "ready", index, life)
        self._at(limit_s - self._rules.drain_s, "warned", index, life)
        self._at(self._rate_s(given.preempted_per_h), "preempted", index, life)

    def _ready(self, index: int) -> None:
        self._to(index, "working")
        one = self._replicas[index]
        one.served_from = self._now
        self._at(self._rate_s(self._given.failures_per_h), "fails", index, one.life)

    def _fails(self, index: int) -> None:
        """The engine fails, and loses the rows in flight."""
        one = self._replicas[index]
        if one.state != "working":
            return
        self._happened["engine failures"] += 1
        self._lose(self._slots.cut(self._ages_s(one), 0.0), 0.0)
        one.restarts.served(self._now - one.served_from, answered=True)
        pause_s = one.restarts.next_delay(clean=False)
        if pause_s is None:
            one.life += 1
            self._to(index, "queued")
            self._give_up()
            return
        self._to(index, "backing off")
        self._at(pause_s + self._given.start_s, "ready", index, one.life)

    def _drains(self, index: int, cause: str, window_s: float) -> None:
        """The replica accepts no more rows, and ends when those in flight have ended, or its time
        is up.
        """
        one = self._replicas[index]
        self._happened[cause] += 1
        cut = self._slots.cut(self._ages_s(one), window_s)
        self._lose(cut, cut.lasts_s)
        self._to(index, "draining")
        one.life += 1
        self._at(cut.lasts_s, "over", index, one.life)

    def _over(self, index: int) -> None:
        self._to(index, "queued")
        if self._rules.supervised:
            self._wait_for(index, _REQUEUED_S + self._wait_s())
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._happened["replicas given up"] += 1
        if self._happened["replicas given up"] == len(self._replicas):
            self._ended = "no_replica"

    # -- rows ------------------------------------------------------------------------------------

    def _ages_s(self, *replicas: _Replica) -> list[float]:
        """For each replica with rows, how many seconds it has had rows."""
        if not self._job_up:
            return []
        working = [one for one in replicas if one.state == "working"]
        return [self._now - max(one.served_from, self._job_from) for one in working]

    def _lose(self, cut: Cut, held_s: float) -> None:
        """Account for the end of some slots; `held_s`: how long their replica is kept for it."""
        slots = self._given.in_flight
        self._left_s += cut.lost_s - cut.busy_s
        self._again += cut.lost
        self._idle["work that is repeated"] += cut.lost_s / slots
        if held_s:
            self._idle["draining"] += held_s - cut.busy_s / slots

    @property
    def _settled(self) -> int:
        done = 1 - max(0.0, self._left_s) / (self._given.rows * self._given.row_s)
        return max(0, min(self._given.rows, int(self._given.rows * done)))

    # -- the job ---------------------------------------------------------------------------------

    def _job_begins(self) -> None:
        given, before = self._given, self._runs
        fruitless = before is not None and was_fruitless(
            self._settled - self._settled_before, self._now - before.began_at
        )
        runs = following(
            before, str(self._happened["runs of the job"]), self._now, fruitless=fruitless
        )
        over, _ = why_over(runs, given.stop_after_s, self._now, settled=False, cancelled=False)
        if over in ("stop_after", "fruitless"):
            self._ended = "stop_after" if over == "stop_after" else "fruitless"
            return
        self._happened["runs of the job"] += 1
        self._runs, self._settled_before = runs, self._settled
        self._job_up, self._job_from = True, self._now
        left_s = runs.left_s(given.stop_after_s, self._now)
        limit_s = math.inf if given.job_limit_s is None else given.job_limit_s
        warned_s = limit_s - (job_warning_s(limit_s) or 0)
        ends_s = min(warned_s, self._rate_s(given.job_preempted_per_h), left_s)
        self._at(ends_s, "job stops", -1, self._job_life)

    def _job_stops(self) -> None:
        """The job is signalled to stop: rows in flight end, and replicas are without work until its
        next run.
        """
        limit_s = self._given.job_limit_s
        window_s = self._given.grace_s if limit_s is None else float(job_warning_s(limit_s) or 0)
        cut = self._slots.cut(self._ages_s(*self._replicas), window_s)
        self._job_up = False
        self._job_life += 1
        self._lose(cut, 0.0)
        self._idle["job between two runs"] -= cut.busy_s / self._given.in_flight
        self._at(_REQUEUED_S + self._wait_s() + _JOB_STARTS_S, "job begins", -1, self._job_life)

    def _look(self) -> None:
        """Update the forecast as a worker does."""
        given, settled = self._given, self._settled
        slots = self._states["working"] * given.in_flight if self._job_up else 0
        mean, square = given.row_s, given.row_s**2 * (1 + given.row_cv**2)
        self._strata[stratum_of(_LENGTH)] = StratumSums(
            settled + slots, settled, settled * mean, settled * square
        )
        self._forecaster.look(self._now, slots, self._strata)
        if self._said is None and settled >= given.rows / 2:
            said = self._forecaster.time_left(given.rows - settled, 0)
            if said is not None:
                forecasted = Forecasted(
                    expected_s=said.expected_s, low_s=said.low_s, high_s=said.high_s, truth_s=0.0
                )
                self._said = self._now, forecasted
        self._at(_LOOK_S, "look", -1, 0)

    # -- the end ---------------------------------------------------------------------------------

    def _last_rows_by(self, at: float) -> bool:
        """Whether the last rows are all in flight, or about to be, before a moment; they are
        answered then.
        """
        slots = self._states["working"] * self._given.in_flight
        if not (self._job_up and slots):
            return False
        few_s = slots * self._given.row_s * (_LAST_ROUNDS + (1 + self._given.row_cv**2) / 2)
        after_s = max(0.0, (self._left_s - few_s) / slots)
        if self._now + after_s >= at:
            return False
        self._pass_to(self._now + after_s)
        if self._ended is None:
            self._answer_last_rows()
        return True

    def _answer_last_rows(self) -> None:
        """Simulate each of them as an event; it goes to the replica that a job would choose."""
        given = self._given
        working = self._states["working"]
        _, left = self._slots.rows(self._ages_s(*self._replicas))
        sums = list(accumulate(left))
        if sums[-1] > self._left_s:  # fewer rows than slots
            left = left[: max(1, bisect_left(sums, self._left_s))]
        rest_s = max(0.0, self._left_s - sum(left))
        rows = round(rest_s / given.row_s)
        costs = [self._draws.lognormvariate(0.0, self._slots.deviation) for _ in range(rows)]
        whole = sum(costs)
        waiting = [cost * rest_s / whole for cost in costs]
        dispatch = Dispatch("least_load")
        for index in range(working):
            dispatch.offer(f"replica-{index}")
        events = [(one, str(dispatch.take(b""))) for one in left]
        heapq.heapify(events)
        ends_s = 0.0
        while events:
            ends_s, url = heapq.heappop(events)
            dispatch.release(url)
            if waiting:
                heapq.heappush(events, (ends_s + waiting.pop(), str(dispatch.take(b""))))
        up = sum(self._states.values())
        self._used_s += up * ends_s
        self._idle["end of the job"] += up * ends_s - self._left_s / given.in_flight
        self._left_s, self._ended = 0.0, "settled"
        self._now += ends_s

    def _result(self) -> Rehearsed:
        given = self._given
        ended = self._ended or "no_replica"
        hours = max(1, given.gpus_per_replica) / _HOUR_S
        settled = given.rows if ended == "settled" else self._settled
        useful_s = (given.rows * given.row_s - max(0.0, self._left_s)) / given.in_flight
        said = None
        if self._said is not None and ended == "settled":
            at_s, found = self._said
            said = found.model_copy(update={"truth_s": self._now - at_s})
        return Rehearsed(
            ended=ended,
            rows=given.rows,
            rows_settled=settled,
            rows_asked_again=self._again,
            by_hand=self._happened["replicas given up"] + (ended != "settled"),
            duration_s=self._now,
            used_h=self._used_s * hours,
            ideal_h=useful_s * hours,
            efficiency=useful_s / self._used_s if self._used_s else 0.0,
            idle_h={name: idle_s * hours for name, idle_s in sorted(self._idle.items())},
            happened=dict(sorted(self._happened.items())),
            forecast=said,
        )


def rehearse(given: Assumptions, rules: Rules) -> Rehearsed:
    """The course of a campaign under these assumptions; the same for the same seed."""
    return _Course(given, rules).run()
