"""Submissions of a swarm's jobs that Slurm took without saying so: nothing of them is forgotten."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from domyn_swarm.backends.protocols import PlatformPart
from domyn_swarm.backends.slurm.slurm_serving import SlurmServing
from domyn_swarm.errors import PlatformError, SubmissionUnknown, SubmitRejected
from domyn_swarm.probing import Phase
from slurm.scripted import ScriptedCluster, ScriptedSlurm
from slurm.scripted_swarm import Launch, ScriptedSwarm

MINUTE_S = 60.0
HIDDEN = re.compile(r"^#SBATCH --(?:comment|job-name)=.*$", re.MULTILINE)


class Silent(ScriptedSlurm):
    """Says nothing of the replicas' submission, and takes it `takes_s` later; None: never."""

    def __init__(
        self,
        cluster: ScriptedCluster,
        says: BaseException,
        takes_s: float | None,
        *,
        hides: bool = False,
    ) -> None:
        """`hides`: the site takes comments and names away."""
        super().__init__(cluster)
        self._says = says
        self._takes_s = takes_s
        self._hides = hides

    def submit(
        self,
        script: Path,
        *,
        array: Sequence[int] | None = None,
        exclude: Sequence[str] = (),
        after: str | None = None,
    ) -> str:
        if script.name == "endpoint.sh":
            return super().submit(script, array=array, after=after)
        if self._takes_s is not None:
            text = script.read_text()
            text = HIDDEN.sub("", text) if self._hides else text
            self._cluster.clock.after(
                self._takes_s, lambda: self._cluster.submit(text, array, exclude, after)
            )
        raise self._says


def launched(
    swarm: ScriptedSwarm,
    says: BaseException,
    takes_s: float | None = None,
    *,
    hides: bool = False,
) -> SlurmServing:
    """Launch it once more: its replicas are submitted, and what becomes of them is as told."""
    serving = SlurmServing(swarm.cluster.process(), swarm.clock)
    serving.delete(swarm.handle)
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)  # they are forgotten by now
    swarm.handle = swarm.handle.model_copy(update={"parts": ()})
    asked = SlurmServing(Silent(swarm.cluster, says, takes_s, hides=hides), swarm.clock)
    with pytest.raises(type(says)):
        swarm.launched_by(asked)
    return serving


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("says", [SubmissionUnknown("timed out"), KeyboardInterrupt()])
def test_what_slurm_takes_later_is_found_and_ended(
    swarm: ScriptedSwarm, says: BaseException, *, hides: bool
) -> None:
    serving = launched(swarm, says, takes_s=2 * MINUTE_S, hides=hides)
    with pytest.raises(PlatformError, match="may yet accept") as caught:
        serving.delete(swarm.handle)
    assert "again in 5 minutes" in caught.value.hint
    swarm.clock.sleep(MINUTE_S)
    assert serving.probe(swarm.handle).phase is Phase.UNKNOWN  # nobody writes it off
    swarm.clock.sleep(MINUTE_S)
    [found] = serving.find(swarm.handle)
    assert {part.kind for part in found.parts} == {"replica"}
    serving.delete(swarm.handle)
    assert swarm.cluster.live() == {}
    assert serving.probe(swarm.handle).phase is Phase.STOPPED


def test_what_was_answered_and_not_recorded_is_found_without_tags(swarm: ScriptedSwarm) -> None:
    """Whoever brings it up is killed between the answer and the record."""
    serving = SlurmServing(swarm.cluster.process(), swarm.clock)
    serving.delete(swarm.handle)
    swarm.clock.sleep(swarm.cluster.min_job_age_s + 1)
    nothing = swarm.handle.model_copy(update={"parts": ()})

    def record(*parts: PlatformPart) -> None:
        if parts[0].kind == "replica":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swarm.launched_by(serving, record)
    for job in swarm.cluster.jobs.values():
        job.comment, job.name, job.output = "", "anonymous", ""
    replicas = {one for one in swarm.cluster.live() if "_" in one}
    serving = SlurmServing(swarm.cluster.process(), swarm.clock)
    swarm.clock.sleep(10 * MINUTE_S)
    [found] = serving.find(nothing)
    assert {part.platform_id for part in found.parts} == replicas
    assert serving.probe(found).phase is Phase.READY
    serving.delete(nothing)
    assert replicas & swarm.cluster.live().keys() == set()


def test_what_slurm_never_took_is_written_off_after_minutes(swarm: ScriptedSwarm) -> None:
    serving = launched(swarm, SubmissionUnknown("timed out"))
    with pytest.raises(PlatformError, match="may yet accept"):
        serving.delete(swarm.handle)
    swarm.clock.sleep(5 * MINUTE_S)
    serving.delete(swarm.handle)
    assert serving.probe(swarm.handle).phase is Phase.STOPPED


def test_what_slurm_refused_does_not_come(swarm: ScriptedSwarm) -> None:
    serving = launched(swarm, SubmitRejected("invalid account"))
    serving.delete(swarm.handle)
    assert serving.probe(swarm.handle).phase is Phase.STOPPED


def test_replicas_of_before_are_not_taken_for_those_that_scaling_submitted(
    launch: Launch,
) -> None:
    swarm = launch(replicas=2)
    layout = swarm.plan.layout.model_copy(update={"replicas": 4})
    grown = swarm.plan.model_copy(update={"layout": layout})
    says = SubmissionUnknown("timed out")
    asked = SlurmServing(Silent(swarm.cluster, says, takes_s=MINUTE_S), swarm.clock)
    with pytest.raises(SubmissionUnknown):
        asked.scale(grown, swarm.ctx, swarm.handle, lambda *_parts: None)
    with pytest.raises(PlatformError, match="may yet accept"):
        asked.delete(swarm.handle)
    swarm.clock.sleep(2 * MINUTE_S)
    asked.delete(swarm.handle)
    assert swarm.cluster.live() == {}
