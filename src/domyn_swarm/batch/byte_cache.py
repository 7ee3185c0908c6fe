"""A cache that is bounded by what its values weigh."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class ByteCache(Generic[_Key, _Value]):
    """The values that were used last, as many as weigh so much together, and always one."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()

    def get(self, key: _Key, make: Callable[[_Key], tuple[_Value, int]]) -> _Value:
        """The value of a key; where it is not kept, it and its bytes are made."""
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[0]
        value, size = self._kept[key] = make(key)
        self._bytes += size
        while self._bytes > self._most and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return value

    def __iter__(self) -> Iterator[_Key]:
        return iter(list(self._kept))

    def forget(self, keys: Iterable[_Key]) -> None:
        """Let values go that are not needed any more."""
        for key in keys:
            self._bytes -= self._kept.pop(key)[1]
