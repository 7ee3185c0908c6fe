"""What is wrong with files: gathered, so that all of it can be mended at once."""

from __future__ import annotations

from domyn_swarm.errors import InvalidInput

_SHOWN = 20


class Problems:
    """Problems of one input, the first of them in words."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._hints: dict[str, None] = {}
        self._count = 0

    def add(self, problem: str, hint: str) -> None:
        """One more: what and where, and what to do about it."""
        if self.counted():
            return
        self._count += 1
        self._found.append(problem)
        self._hints[hint] = None

    def counted(self) -> bool:
        """Count one more without words, where enough are known; whether it was."""
        full = len(self._found) >= _SHOWN
        self._count += full
        return full

    def take(self, other: Problems) -> None:
        """All problems of another, behind these."""
        room = max(0, _SHOWN - len(self._found))
        self._found += other._found[:room]
        self._hints |= other._hints
        self._count += other._count

    def check(self) -> None:
        """Refuse the input if there was any.

        Raises:
            InvalidInput: names them, the first 20.
        """
        if not self._count:
            return
        left = self._count - len(self._found)
        more = [f"… and {left} more."] if left else []
        raise InvalidInput("\n".join([*self._found, *more]), hint=" ".join(self._hints))
