"""Runs Slurm's commands, each with a time limit, and turns their refusals into errors."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from domyn_swarm.backends.slurm import printed
from domyn_swarm.backends.slurm.ending import WouldTake
from domyn_swarm.backends.slurm.invocation import last_line, run, send_signals
from domyn_swarm.backends.slurm.queue import LONGEST_S, JobsById, QueueSnapshot
from domyn_swarm.backends.slurm.reasons import advice
from domyn_swarm.backends.slurm.slurm_states import (
    ACCOUNT_FORMAT,
    QUEUE_FORMAT,
    STEP_ACCOUNT_FORMAT,
    STEP_FORMAT,
    Allocation,
    OwnEnd,
    SlurmJob,
    latest,
    parse_allocation,
    parse_queue,
)
from domyn_swarm.errors import (
    CommandMissing,
    PlatformError,
    PlatformUnavailable,
    SubmissionUnknown,
    SubmitRejected,
)
from domyn_swarm.logs import get_logger
from domyn_swarm.probing import Clock

_log = get_logger(__name__)

_UNKNOWN_S = 5.0  # between two queries for a job that Slurm does not know
_ASK_AGAIN_S = 60.0
_ASK_AGAIN_MAX_S = 3600.0
_SURELY_S = 1.0
_MOMENTS_S = 5.0
_AT_ONCE = 8  # scancel sends ten signals at a time, and repeats are among them
_ID = re.compile(r"\d+(?:_\d+)?(?:\.\d+)?")
_PARTITIONS = re.compile(r"^#SBATCH --partition=(\S+)", re.MULTILINE)
# Without it commands of users other than root leave out hidden partitions and their jobs.
_HIDDEN_TOO = ("--all",)
_MINE = ("squeue", *_HIDDEN_TOO, "--noheader", "--user", str(os.getuid()))
_SHOW = ("scontrol", *_HIDDEN_TOO, "--oneliner", "show")
_NO_NODE = "Requested node configuration is not available"


class Slurm:
    """The scheduler, through its commands. Threads may share an instance."""

    def __init__(self, longest_s: float = LONGEST_S, clock: Clock = time) -> None:
        """`longest_s`: the greatest age of a queue snapshot while nothing changes."""
        self._clock = clock
        self._cluster: str | None = None
        self._cluster_unknown: tuple[float, PlatformError] | None = None  # at what time, and why
        self._queue = QueueSnapshot(
            lambda: self._squeue("--array", "--states=all", form=QUEUE_FORMAT), longest_s, clock
        )
        self._steps = QueueSnapshot(lambda: self._squeue("--steps", form=STEP_FORMAT), clock=clock)
        self._ask_accounting_at = -math.inf
        self._accounting_pause_s = _ASK_AGAIN_S
        self._remembered: JobsById = {}
        self._missed: set[str] = set()  # asked for, and not in any fresh snapshot
        self._asked_at: dict[str, float] = {}

    def cluster(self) -> str:
        """The name of the cluster that Slurm's commands ask on this machine.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        if self._cluster is not None:
            return self._cluster
        now = self._clock.monotonic()
        if self._cluster_unknown is not None and now - self._cluster_unknown[0] < _UNKNOWN_S:
            raise self._cluster_unknown[1]
        try:
            self._cluster = self._named_cluster()
        except PlatformError as error:
            self._cluster_unknown = now, error
            raise
        return self._cluster

    def _named_cluster(self) -> str:
        done = run(["scontrol", "show", "config"])
        named = printed.cluster_name(done.stdout)
        if done.returncode != 0 or named is None:
            raise PlatformUnavailable(
                f"scontrol does not show the cluster's name: {last_line(done.stderr)}",
                hint="Ask again in a while; SLURM_CLUSTERS, if set, must name one cluster.",
            )
        return named

    def submit(
        self,
        script: Path,
        *,
        array: Sequence[int] | None = None,
        exclude: Sequence[str] = (),
        after: str | None = None,
        once_over: str | None = None,
    ) -> str:
        """Submit a script and return the new job's id: only the tasks `array` of its array, not on
        the nodes `exclude` (in place of those that the script excludes), not before the job `after`
        has started, not before the job `once_over` has ended.

        Raises:
            CommandMissing: there is no Slurm here.
            SubmissionUnknown: sbatch did not answer, or printed no id; the job may be in the queue.
            PlatformUnavailable: the job went to another cluster and cannot be cancelled there.
            SubmitRejected: Slurm refused it, or sent it to another cluster, where it was cancelled.
        """
        options = [] if array is None else [f"--array={','.join(map(str, array))}"]
        options += [f"--exclude={','.join(exclude)}"] if exclude else []
        options += [] if after is None else [f"--dependency=after:{after}"]
        options += [] if once_over is None else [f"--dependency=afterany:{once_over}"]
        try:
            done = run(["sbatch", "--parsable", *options, str(script)])
        except PlatformUnavailable as error:
            self._queue.expect_change()
            raise SubmissionUnknown(error.message, hint=error.hint) from error
        if done.returncode != 0:
            raise _refused(script, printed.refusal(done.stderr, done.stdout))
        for warned in printed.warnings(done.stderr):
            _log.warning("Slurm accepted %s with a warning: %s", script.name, warned)
        self._queue.expect_change()
        submitted = printed.submitted(done.stdout)
        if submitted is None:
            raise SubmissionUnknown(
                f"sbatch printed no job id for {script.name}: {last_line(done.stdout)}",
                hint="A wrapper around sbatch may hide it. The job may be in the queue: see "
                f"`squeue`; the script is {script}.",
            )
        job, cluster = submitted
        if cluster and cluster.lower() != self.cluster():
            self._take_back(script, job, cluster)
        return job

    def _take_back(self, script: Path, job: str, cluster: str) -> None:
        """Cancel a job that went to another cluster, where this one could not ask about it."""
        done = run(["scancel", "--quiet", f"--clusters={cluster}", job])
        if done.returncode != 0:
            raise PlatformUnavailable(
                f"Slurm passed {script.name} on to the cluster {cluster} as job {job}, which "
                f"cannot be cancelled from here: {last_line(done.stderr)}",
                hint=f"Cancel it there: scancel {job}",
            )
        raise SubmitRejected(
            f"Slurm passed {script.name} on to the cluster {cluster}, where it was cancelled: "
            f"the cluster that is asked from here is {self.cluster()}.",
            hint=f"Set SLURM_CLUSTERS={cluster} to use that one.",
        )

    def test(self, script: Path) -> WouldTake:
        """Whether Slurm would accept a script. The script is temporary, so errors do not name its
        path.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
            SubmitRejected: it would be refused, or could never run: Slurm often accepts such a job,
                which then waits for ever. While nodes are drained or down Slurm reports the same
                for jobs that only have to wait; then nothing is raised.
        """
        done = run(["sbatch", "--test-only", str(script)])
        asked = _PARTITIONS.search(script.read_text("utf-8"))
        tried = "" if asked is None else f" (partitions tried: {asked[1]})"
        warned = printed.warnings(done.stderr)
        if done.returncode == 0:
            said = printed.start_of(done.stderr)  # names the partition that Slurm chose
            return WouldTake(said + tried if "," in tried else said, warned)
        said = printed.refusal(done.stderr, done.stdout)
        away = self._nodes_away() if _NO_NODE in said else 0
        if not away:
            refused = f"Slurm refused {script.name}: {said}{tried}"
            raise SubmitRejected(refused, hint=advice(said))
        return WouldTake(said + tried, warned, away)

    def _nodes_away(self) -> int:
        done = run(["sinfo", *_HIDDEN_TOO, "--noheader", "--Node", "--format", "%N %T"])
        return printed.nodes_away(done.stdout)

    def jobs(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """Those of these jobs, array tasks and steps (`17.0`) that Slurm knows.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        found = self._known(ids, math.inf)
        if unknown := {*ids} - found.keys():  # started since, by another process, or forgotten
            found = self._known(ids, _UNKNOWN_S if unknown <= self._missed else 0.0)
            self._missed |= {*ids} - found.keys()
        missing = [one for one in ids if one not in found]
        return {**found, **(self._accounted(missing) if missing else {})}

    def _known(self, ids: Sequence[str], at_most_s: float) -> JobsById:
        known = self.queue(at_most_s)
        if any("." in one for one in ids):
            known = {**known, **self._steps.now(at_most_s)}
        return {one: known[one] for one in ids if one in known}

    def queue(self, at_most_s: float = math.inf) -> JobsById:
        """Every job of this user that the controller still knows, including ended ones.

        Args:
            at_most_s: how old the snapshot may be; 0 for conclusions from a job's absence.
        """
        return self._queue.now(at_most_s)

    def outputs(self, ids: Sequence[str]) -> dict[str, str]:
        """The files that these jobs and tasks print to, where Slurm shows them.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        done = run([*_MINE, "--array", "--states=all", "--Format", printed.OUTPUTS_FORMAT])
        found = printed.outputs(done.stdout)
        return {one: found[one] for one in ids if one in found}

    def steps(self, at_most_s: float = math.inf) -> JobsById:
        """Every running step of this user, as `queue`; a step has its name in place of a comment.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        return self._steps.now(at_most_s)

    def expect_change(self) -> None:
        """Discard the snapshots of jobs and steps and refresh them often: something starts or
        ends.
        """
        self._queue.expect_change()
        self._steps.expect_change()

    def _squeue(self, *which: str, form: str) -> JobsById:
        done = run([*_MINE, *which, "--format", form])
        if done.returncode != 0:
            raise _unanswered(f"squeue failed: {last_line(done.stderr)}")
        return latest(parse_queue(done.stdout))

    def allocation(self, job: str) -> Allocation:
        """The allocation of a running job.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked, or does not know the job.
        """
        done = run(["scontrol", "--oneliner", "show", "job", job])
        if done.returncode != 0:
            raise _unanswered(f"Slurm does not show the job {job}: {last_line(done.stderr)}")
        return parse_allocation(done.stdout)

    def own_end(self, job: str) -> OwnEnd | None:
        """What Slurm does with a job that it is ending; None: Slurm does not know the job. The job
        itself asks, with only moments left, so the time limit is short.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        done = run(["scontrol", "--oneliner", "show", "job", job], _MOMENTS_S)
        return printed.own_end(done.stdout) if done.returncode == 0 else None

    def _accounted(self, ids: Sequence[str]) -> dict[str, SlurmJob]:
        """Accounting's records of jobs that the controller forgot; empty without accounting. It is
        asked once a minute for a job that it does not know, and at growing intervals while it does
        not answer, as on a site without accounting.
        """
        now = self._clock.monotonic()
        ids = [one for one in ids if _ID.fullmatch(one)]
        ask = [one for one in ids if now - self._asked_at.get(one, -math.inf) >= _ASK_AGAIN_S]
        if ask and now >= self._ask_accounting_at:
            steps = [one for one in ask if "." in one]
            try:
                self._remembered |= self._sacct(steps, STEP_ACCOUNT_FORMAT)
                self._remembered |= self._sacct([*set(ask).difference(steps)], ACCOUNT_FORMAT)
            except (CommandMissing, PlatformUnavailable) as error:
                _log.info("accounting does not answer: %s", error.message)
                self._ask_accounting_at = now + self._accounting_pause_s
                self._accounting_pause_s = min(2 * self._accounting_pause_s, _ASK_AGAIN_MAX_S)
            else:
                self._accounting_pause_s = _ASK_AGAIN_S
                self._asked_at.update(dict.fromkeys(ask, now))
        return {one: self._remembered[one] for one in ids if one in self._remembered}

    def _sacct(self, ids: Sequence[str], form: str) -> JobsById:
        if not ids:
            return {}
        command = ["sacct", "--noheader", "--parsable2", "--jobs", ",".join(ids)]
        done = run([*command, "--format", form])
        if done.returncode != 0:
            raise PlatformUnavailable(f"sacct failed: {last_line(done.stderr)}")
        found = latest(parse_queue(done.stdout))
        return {one: found[one] for one in ids if one in found}

    def runs(self, ids: Sequence[str], name: str) -> dict[str, list[tuple[float, float | None]]]:
        """When jobs and tasks had their allocations, from accounting; see `printed.runs`.

        Raises:
            CommandMissing, PlatformUnavailable: there is no accounting, or it does not answer.
        """
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
        asked = ["--jobs", ",".join(ids), "--format", printed.RUNS_FORMAT]
        done = run(["env", "SLURM_TIME_FORMAT=%s", *command, *asked])
        if done.returncode != 0:
            raise PlatformUnavailable(f"sacct failed: {last_line(done.stderr)}")
        return printed.runs(done.stdout, name)

    def cancel(self, ids: Sequence[str], *, signal: str | None = None) -> None:
        """End jobs, tasks and steps, or send them a signal: to the batch script of a job, to every
        process of a step. Jobs that wait cannot receive a signal; they are ended, and first, so
        that they do not start meanwhile. Unknown ids are no error.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        signalled = [one for one in dict.fromkeys(ids) if signal is not None and self._runs(one)]
        if ended := [one for one in ids if one not in signalled]:
            run(["scancel", "--quiet", *ended])
        if signal is not None:
            jobs = [one for one in signalled if "." not in one]
            for first in range(0, len(jobs), _AT_ONCE):
                send_signals(signal, jobs[first : first + _AT_ONCE])
            if steps := [one for one in signalled if "." in one]:
                run(["scancel", "--quiet", f"--signal={signal}", *steps])
        self.expect_change()

    def _runs(self, job: str) -> bool:
        known = self.queue(_SURELY_S).get(job)
        return known is None or not known.waiting

    def signal_steps(self, job: str, signal: str) -> None:
        """Send a signal to every step of a job, but not to its batch script."""
        run(["scancel", "--quiet", f"--signal={signal}", job])

    def requeue(self, job: str) -> bool:
        """Put a running job back into the queue; return whether Slurm accepted that."""
        return run(["scontrol", "requeue", job]).returncode == 0

    def exclude(self, job: str, nodes: Sequence[str]) -> bool:
        """Exclude nodes for a waiting job; return whether Slurm accepted that."""
        change = f"ExcNodeList={','.join(nodes)}"
        return run(["scontrol", "update", f"JobId={job}", change]).returncode == 0

    def shown(self, what: str) -> str:
        """Slurm's partitions or nodes (`what`), one per line, with hidden ones.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        done = run([*_SHOW, what])
        if done.returncode != 0:
            raise _unanswered(f"scontrol failed: {last_line(done.stderr)}")
        return done.stdout

    def names(self, what: str) -> set[str]:
        """The names of Slurm's partitions or nodes (`what`), with hidden ones.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        return printed.names(what, self.shown(what))

    def gives_whole_nodes(self, partitions: str) -> bool:
        """Whether jobs of a partition share no node with others, whatever they ask for. For several
        (`a,b`), of which Slurm takes the first with room: whether this holds for each.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked, or does not show one.
        """
        return all(printed.gives_whole_nodes(self._partition(one)) for one in partitions.split(","))

    def _partition(self, name: str) -> str:
        """Slurm's description of a partition, or its answer that there is none of that name."""
        done = run([*_SHOW, "partition", name])
        if done.returncode == 0 or printed.has_no_partition(done.stdout):
            return done.stdout
        raise _unanswered(f"scontrol does not show the partition {name}: {last_line(done.stderr)}")

    def node_address(self, node: str) -> str | None:
        """The address at which the scheduler reaches a node; None: not known."""
        done = run([*_SHOW, "node", node])
        return printed.node_address(done.stdout) if done.returncode == 0 else None


def _unanswered(message: str) -> PlatformUnavailable:
    return PlatformUnavailable(message, hint="Ask again in a while.")


def _refused(script: Path, said: str) -> SubmitRejected:
    return SubmitRejected(
        f"Slurm refused {script.name}: {said}",
        hint=f"The script is {script}. {advice(said)}",
    )
