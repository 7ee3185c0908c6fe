"""What a job asks of the platform, and the same in the words of `srun`."""

from typing import Annotated, Literal

from domyn_swarm.model import Record
from domyn_swarm.record import Meta


class JobResources(Record):
    """What a job asks for itself; None: what the platform gives when nothing is asked."""

    detached: bool = False  # nobody follows it: it must survive logout
    # A step of the endpoint's job, a job of its own, or a process where it is submitted.
    placement: Literal["step", "job", "here"] | None = None
    cpus: Annotated[int, Meta(ge=1)] | None = None
    memory_gb: Annotated[float, Meta(gt=0)] | None = None
    time_limit_s: Annotated[float, Meta(gt=0)] | None = (
        None  # of one run, where it goes on by itself
    )
    stop_after_s: Annotated[float, Meta(gt=0)] | None = (
        None  # from its first run's begin, all runs together
    )
    max_gpu_hours: Annotated[float, Meta(gt=0)] | None = None  # all runs together
    continues: bool | None = None  # over the limits of its allocation; None: where that can be
    mail_user: str | None = None

    @property
    def shortest_limit_s(self) -> float | None:
        """The limit of a job that runs once."""
        limits = [one for one in (self.time_limit_s, self.stop_after_s) if one is not None]
        return min(limits, default=None)


class SrunResources(Record):
    """One step inside an allocation. Each value is one word of `srun`'s argv: nothing is quoted,
    split or joined.
    """

    allocation: str  # the job whose resources it shares with whatever else runs there
    name: str
    cpus: Annotated[int, Meta(ge=1)]
    memory_mb: Annotated[int, Meta(ge=1)] | None = None  # None: all of it, shared with others

    def argv(self) -> list[str]:
        """`srun` and its options, up to the program."""
        return [
            "srun",
            f"--jobid={self.allocation}",
            f"--job-name={self.name}",
            "--overlap",
            "--exact",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={self.cpus}",
            f"--mem={0 if self.memory_mb is None else f'{self.memory_mb}M'}",
            "--input=none",
        ]
