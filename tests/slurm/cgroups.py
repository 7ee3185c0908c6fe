"""A cluster whose kernel counts the memory of jobs and kills for it, as most sites have it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import SlurmCluster

_MOUNTED = Path("/sys/fs/cgroup")
# Later lines of slurm.conf hold.
_SETTINGS = """\
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherParams=NoShared
"""
_CONSTRAINTS = """\
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
"""


@dataclass
class CgroupCluster(SlurmCluster):
    """Control groups of version 1, and root to make them. One at a time: they bear nodes' names."""

    settings: str = _SETTINGS

    @staticmethod
    def refusal() -> str | None:
        """Why this machine can have none."""
        if os.geteuid() != 0:
            return "this is not root"
        missing = [one for one in ("memory", "freezer") if not (_MOUNTED / one / "tasks").exists()]
        return f"control groups of version 1 lack {missing}" if missing else None

    def stop(self) -> None:
        """See `SlurmCluster`; slurmd leaves its groups, which go too."""
        super().stop()
        for node in self.node_names:
            for group in _MOUNTED.glob(f"*/slurm_{node}"):
                folders = [one for one in group.rglob("*") if one.is_dir()]
                for one in sorted([group, *folders], reverse=True):
                    one.rmdir()

    def _write_files(self) -> None:
        super()._write_files()
        with (self.folder / "etc/cgroup.conf").open("a", encoding="utf-8") as settings:
            settings.write(_CONSTRAINTS)
