"""What the simulator answers: derived from the prompt alone."""

from __future__ import annotations

import hashlib

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
