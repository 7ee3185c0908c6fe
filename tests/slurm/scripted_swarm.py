"""A swarm on a scripted Slurm: its jobs and files are there, its programs are not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from domyn_swarm.backends.protocols import PartRecorder, ServingHandle
from domyn_swarm.backends.slurm.queue import TaggedJob, tagged
from domyn_swarm.backends.slurm.slurm_serving import SlurmServing
from domyn_swarm.config import DomynLLMSwarmConfig
from domyn_swarm.paths import SwarmPaths, write_private
from domyn_swarm.planning.builder import PlanBuilder
from domyn_swarm.planning.plan import DeploymentContext, ServingSpec
from slurm.scripted import Job, ScriptedCluster

TAG = "tag-of-demo"
Launch = Callable[..., "ScriptedSwarm"]


class ScriptedSwarm:
    """Launched as `up` does it; all of its jobs run."""

    def __init__(
        self,
        cluster: ScriptedCluster,
        folder: Path,
        replicas: int | Mapping[str, int],
        gpus_per_replica: int,
        backend: Mapping[str, object],
    ) -> None:
        self.cluster = cluster
        self.clock = cluster.clock
        section = {
            "type": "slurm",
            "partition": "main",
            "container": "none",
            "endpoint": {"mem": "1000M", "cpus_per_task": 1},
            **backend,
        }
        config = DomynLLMSwarmConfig.model_validate(
            {
                "name": "demo",
                "model": "m",
                "engine": "sim",
                "replicas": replicas,
                "gpus_per_replica": gpus_per_replica,
                "home_directory": str(folder),
                "backend": section,
            }
        )
        self.plan = PlanBuilder(config, "demo").build()
        self.paths = SwarmPaths.of(folder, "demo")
        self.ctx = DeploymentContext(
            tag=TAG,
            serving_spec=ServingSpec(argv=("serve",), env={}, key_env="KEY", failure_patterns=()),
            timeout_s=1,
            interpreter="python3",
            shared_env={},
        )
        write_private(self.paths.plan, self.plan.model_dump_json())
        self.serving = SlurmServing(cluster.process(), self.clock)
        self.handle = self.launched_by(self.serving)
        for left in (self.paths.endpoint.parent, self.paths.jobs):
            left.mkdir(parents=True, exist_ok=True)
        logs = [
            self.paths.slurm_logs / f"replica-{index}.log"
            for index in range(self.plan.layout.replicas)
        ]
        for log in (self.paths.endpoint_log, *logs):  # as slurmd opens them
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        self.clock.until(self.all_run)

    def launched_by(
        self, serving: SlurmServing, record: PartRecorder = lambda *_parts: None
    ) -> ServingHandle:
        scripts = serving.scripts(self.plan, self.ctx)
        return serving.launch(self.plan, self.ctx, scripts, record)

    def all_run(self) -> bool:
        return set(self.cluster.live().values()) == {"RUNNING"}

    def tagged(self, kind: str) -> list[TaggedJob]:
        seen = [job.seen for job in self.cluster.jobs.values()]
        return [one for one in tagged(seen, TAG) if one.kind == kind]

    @property
    def endpoint(self) -> str:
        """The last of its endpoint's jobs."""
        return self.tagged("endpoint")[-1].job.id

    def task(self, group: int) -> str:
        """The last of a task's jobs."""
        return [one.job.id for one in self.tagged("replica") if one.group == group][-1]

    def live(self, job: str) -> Job | None:
        found = self.cluster.jobs.get(job)
        return None if found is None or found.seen.over else found

    def leave(self, path: Path, text: str, *, age_s: float = 0.0) -> None:
        """A file that a program of the swarm has left."""
        write_private(path, text)
        written_at = self.clock.time() - age_s
        os.utime(path, (written_at, written_at))
