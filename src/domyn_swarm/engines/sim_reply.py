"""What the simulator answers: derived from the prompt alone."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from domyn_swarm.engines.sim_options import OutputTokens

READY_PROMPT = "domyn-swarm: ready?"  # the watchdog's first request; no rule applies, none is kept
REPLY_TOKENS = 16  # of an answer that is not cut short
_WORDS = (
    *("river", "stone", "lantern", "orchard", "harbour", "copper", "violet", "winter"),
    *("meadow", "signal", "anchor", "feather", "marble", "thunder", "garden", "silver"),
)


def sim_reply(prompt: str, max_tokens: int = REPLY_TOKENS) -> str:
    """What the simulator answers: always the same for the same prompt, and telling of it."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=REPLY_TOKENS - 1).digest()
    words = [_WORDS[byte % len(_WORDS)] for byte in digest]
    return " ".join([digest.hex()[:8], *words][:max_tokens])


@dataclass(frozen=True)
class ModelTokens:
    """How a modelled engine counts text, and how much it writes."""

    characters: int  # of a token
    output: OutputTokens | None

    def of(self, text: str) -> int:
        """Tokens of a text."""
        return -(-len(text) // self.characters)

    def wanted(self, prompt: str) -> int:
        """Tokens of the answer to a prompt, always the same, if nothing cuts it."""
        if self.output is None:
            return REPLY_TOKENS
        chance = random.Random(f"{self.output.seed}:{prompt}")  # noqa: S311 - no secret
        return max(1, round(chance.lognormvariate(math.log(self.output.median), self.output.sigma)))

    def text(self, prompt: str, tokens: int) -> str:
        """An answer of so many tokens, always the same for the same prompt."""
        words, length = sim_reply(prompt) + " ", tokens * self.characters
        return (words * (length // len(words) + 1))[: length - 1] + "."
