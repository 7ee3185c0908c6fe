"""What a run keeps of the replies to its requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from domyn_swarm.batch.observations import LatencyHistogram, ReplicaShares, SizeHistogram

_TOGETHER = 1024


@dataclass
class ReplySums:
    """Bounded in memory, whatever is counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    prompt_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    completion_sizes: SizeHistogram = field(default_factory=SizeHistogram)
    replicas: ReplicaShares = field(default_factory=ReplicaShares)


class Replies:
    """Told of each reply, adds up many at once: one at a time that would cost a row 3 % more."""

    def __init__(self) -> None:
        self._sums = ReplySums()
        self._told: list[tuple[float, int, int, str | None]] = []

    def count(
        self, latency_s: float, prompt_tokens: int, completion_tokens: int, replica: str | None
    ) -> None:
        """Count a reply; `replica` is who gave it, where that is known."""
        self._told.append((latency_s, prompt_tokens, completion_tokens, replica))
        if len(self._told) >= _TOGETHER:
            self._add_up()

    @property
    def sums(self) -> ReplySums:
        """Of all replies so far."""
        if self._told:
            self._add_up()
        return self._sums

    def _add_up(self) -> None:
        told, self._told = self._told, []
        sums = self._sums
        latencies, prompts, completions, _ = zip(*told, strict=True)
        sums.latency_s += sum(latencies)
        sums.prompt_tokens += sum(prompts)
        sums.completion_tokens += sum(completions)
        sums.latency.add(latencies)
        sums.prompt_sizes.add(prompts)
        sums.completion_sizes.add(completions)
        for latency_s, prompt_tokens, completion_tokens, replica in told:
            if replica is not None:
                share = sums.replicas[replica]
                share.answers += 1
                share.prompt_tokens += prompt_tokens
                share.completion_tokens += completion_tokens
                share.latency_s += latency_s
