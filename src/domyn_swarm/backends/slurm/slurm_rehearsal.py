"""The rehearsal as a Slurm job: one task on a node of the replicas' partition for a moment, and on
a second one where a replica spans several.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from domyn_swarm.backends.checks import Check, failed, ok, warning
from domyn_swarm.backends.node_checks import Visited, node_checks
from domyn_swarm.backends.rehearsal import OtherNode, Rehearsal, Visit, question, watched
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.ending import WouldTake
from domyn_swarm.backends.slurm.script_contents import (
    REHEARSAL,
    REHEARSAL_COMMENT,
    container_program,
    rehearsal_nodes,
    rehearsal_script,
    slurm_config,
)
from domyn_swarm.backends.slurm.slurm_states import SlurmJob
from domyn_swarm.errors import PlatformError, quantity
from domyn_swarm.paths import write_private
from domyn_swarm.planning.plan import DeploymentContext, DeploymentPlan
from domyn_swarm.probing import Clock

_SEEN_WITHIN_S = 20.0  # delay until what a node wrote is visible here
_LOG_WITHIN_S = 3.0  # delay until the end of a visible log is
_LAST_LINES = 3
_SECOND = OtherNode(
    start=(
        *("srun", "--overlap", "--export=ALL", "--nodes=1", "--ntasks=1"),
        *("--exclude={node}", "--input=none"),
    ),
    address_program="from domyn_swarm.backends.slurm.node_address import node_address\n"
    "print(node_address())",
)


class RehearsalJob:
    """One job, from its submission to its end."""

    def __init__(self, slurm: Slurm, wish: Rehearsal, clock: Clock = time) -> None:
        self._slurm = slurm
        self._wish = wish
        self._clock = clock
        self._job = ""
        self._seen: SlurmJob | None = None  # in the last snapshot
        self._gives_up_at = self._over_at = math.inf
        self._said = ""
        self._log: Path | None = None

    def checks(self, plan: DeploymentPlan, ctx: DeploymentContext) -> Iterator[Check]:
        """Run the job and return its results as checks. It is cancelled at the end in any case.

        Raises:
            PlatformError: Slurm refuses it, or cannot be asked.
            OSError: its folder cannot be written to.
        """
        config = slurm_config(plan)
        runtime = container_program(config)
        other = _SECOND if rehearsal_nodes(plan) > 1 else None
        asked = question(plan, runtime=runtime, image=plan.image, gpus=self._wish.gpus, other=other)
        folder = plan.home_directory / "rehearsals" / secrets.token_hex(4)
        self._log = folder / "log"
        with Visit(folder, asked) as visit:
            path = folder / "rehearsal.sh"
            site = None if config.template_path is None else Path(config.template_path)
            text = rehearsal_script(plan, ctx, folder, gpus=self._wish.gpus).render(
                "batch.sh.j2", site
            )
            write_private(path, text)
            self._job = self._slurm.submit(path)
            self._gives_up_at = self._clock.monotonic() + self._wish.within_s
            try:
                yield from self._seen_through(plan, visit)
            finally:
                self._slurm.cancel([self._job])

    def _seen_through(self, plan: DeploymentPlan, visit: Visit) -> Iterator[Check]:
        began = self._clock.monotonic()
        calls = list(watched(visit, self._address, self._ended, self._clock))
        report = visit.report()
        if report is None:
            yield self._why_not(visit.folder)
            return
        took_s = self._clock.monotonic() - began
        yield ok("node", f"job {self._job} ran on {report['node']} within {took_s:.0f} s")
        yield from self._name_checks()
        visited = Visited(report, calls[0] if calls else None, visit.was_called)
        yield from node_checks(plan, visited)

    def _name_checks(self) -> Iterator[Check]:
        """Whether the site left the names and comments of jobs unchanged."""
        if self._seen is None:  # it ended before it appeared in a snapshot
            return
        named = self._seen.name == REHEARSAL
        if self._seen.comment.startswith(REHEARSAL_COMMENT):
            yield ok("job comments", "come back as they were written")
        elif named:
            why = "the site takes away the comments of jobs, or writes its own"
            fix = "Nothing: jobs are known by their names, too."
            yield warning("job comments", why, fix)
        else:
            why = "the site changes comments and names of jobs: lost replicas are not replaced"
            fix = (
                'Ask the site to leave one of them; see "Slurm" in the documentation for what does '
                "not work."
            )
            yield warning("job comments", why, fix)

    def _address(self, node: str) -> str:
        return self._slurm.node_address(node) or node

    def _ended(self) -> bool:
        """Whether it is over, and its files are visible here too; or has waited long enough."""
        try:
            self._seen = self._slurm.jobs([self._job]).get(self._job, self._seen)
        except PlatformError as error:  # it runs on meanwhile
            self._tell(error.message)
            return self._clock.monotonic() > self._gives_up_at
        now = self._clock.monotonic()
        if self._seen is None or self._seen.waiting:
            self._tell(self._seen.observation.detail if self._seen else "is not in the queue yet")
            return now > self._gives_up_at
        if not self._seen.going:
            self._over_at = min(self._over_at, now)
        return now - self._over_at > (_LOG_WITHIN_S if self._log_is_seen() else _SEEN_WITHIN_S)

    def _log_is_seen(self) -> bool:
        return self._log is not None and self._log.exists() and self._log.stat().st_size > 0

    def _tell(self, what: str) -> None:
        if what != self._said:
            self._said = what
            self._wish.say(f"The rehearsal, job {self._job}: {what}")

    def _why_not(self, folder: Path) -> Check:
        """The check that says why there is no report."""
        if self._seen is None or self._seen.waiting:
            why = self._seen.observation.detail if self._seen else "it is not in the queue"
            return warning(
                "node",
                f"job {self._job} did not start within {self._wish.within_s:.0f} s: {why}",
                "Try it again when there is room, or wait for longer: --timeout.",
            )
        ended = f"job {self._job} on {self._seen.node}: {self._seen.observation.detail}"
        try:
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return failed(
                "node",
                f"{ended}; it wrote nothing to {folder}, which the node does not see, apparently",
                "Set DOMYN_SWARM_HOME or home_directory to a folder that the nodes share.",
            )
        last = " / ".join(log.strip().splitlines()[-_LAST_LINES:]) or "its log is empty"
        return failed("node", f"{ended}: {last}", "Correct what its log names.")


def would_take_checks(name: str, tested: WouldTake) -> Iterator[Check]:
    """What Slurm answers about a script that it would accept."""
    if tested.away:
        away = quantity(tested.away, "node is", "nodes are")
        yield warning(
            "rehearsal",
            f"{name}: it can be submitted, and waits: {away} drained or down, and "
            f"no other node has what it asks for now ({tested.said})",
            "Wait until they are back (`sinfo -R` says why they are away), or ask for less.",
        )
    else:
        yield ok("rehearsal", f"{name}: {tested.said}")
    for warned in tested.warnings:
        yield warning(
            "rehearsal",
            f"{name}: Slurm warns: {warned}",
            "Change what it is about (`domyn-swarm plan` shows the script), if it is not meant so.",
        )
