"""The identity of a job's requests: of the request side only, never the swarm's name or URL.

Model and revision, job (its source as a syntax tree, or an explicit version), parameters, columns,
output schema, tag. Jobs with the same identity share one checkpoint; any other gets its own, and
the difference is reported. Code that the job imports is not covered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domyn_swarm.paths import write_private

_FILE = "identity.json"
_NAMES = {"job": "job's class", "tag": "--checkpoint-tag", "id_column": "--id-column"}
_DIGESTS = {"source": "the code of the job"}
_SHOWN = 5
_CHARACTERS = 60
_BEFORE = 12  # characters that are shown before the first difference


@dataclass(frozen=True)
class JobIdentity:
    """The fields, by name; values are JSON."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Names the checkpoint's folder: 24 hexadecimal digits."""
        canonical = json.dumps(self.fields, sort_keys=True, default=repr).encode()
        return hashlib.blake2b(canonical, digest_size=12).hexdigest()

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The differences from `other`, field by field, as text."""
        return list(_differences("", dict(other), dict(self.fields)))

    def write(self, folder: Path) -> None:
        """Write the fields next to the results, in readable form."""
        document = json.dumps(self.fields, sort_keys=True, indent=2, default=repr)
        write_private(folder / _FILE, document)


def in_words(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The first few differences between the fields of two identities, under the names that users
    know.
    """
    found = []
    for path, before, after in _differing("", dict(old), dict(new)):
        name = path.removeprefix("params.")
        if path in _DIGESTS:
            found.append(_DIGESTS[path])
        else:
            found.append(f"{_NAMES.get(path, name)}: {_pair(before, after, 'not set')}")
    if found[_SHOWN:]:
        return [*found[:_SHOWN], f"and {len(found) - _SHOWN} more"]
    return found


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    for name, before, after in _differing(path, old, new):
        yield f"{name}: {_pair(before, after, 'null')}"


def _differing(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:  # noqa: ANN401 - JSON
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differing(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _pair(old: Any, new: Any, nothing: str) -> str:  # noqa: ANN401 - JSON
    """Both values, long texts from their first difference."""
    if isinstance(old, str) and isinstance(new, str):
        pairs = enumerate(zip(old, new, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))
        if max(len(old), len(new)) > _CHARACTERS and same > _BEFORE:
            begin = same - _BEFORE
            return f"…{_short(old[begin:])} → …{_short(new[begin:])}"
    shown = [nothing if one is None else _short(one) for one in (old, new)]
    return " → ".join(shown)


def _short(value: Any) -> str:  # noqa: ANN401 - JSON
    text = json.dumps(value, default=repr, ensure_ascii=False)
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 3] + "…"


def nearest(root: Path, identity: JobIdentity) -> tuple[str, list[str]] | None:
    """The existing checkpoint of the same job class that differs least, and how it differs."""
    candidates = []
    for path in sorted(root.glob(f"*/{_FILE}")):
        fields = read_fields(path.parent)
        if fields is not None and fields.get("job") == identity.fields.get("job"):
            candidates.append((identity.differences(fields), path.parent.name))
    if not candidates:
        return None
    differences, name = min(candidates, key=lambda found: (len(found[0]), found[1]))
    return name, differences


def read_fields(folder: Path) -> dict[str, Any] | None:
    """The recorded fields of a checkpoint; None when they cannot be read."""
    try:
        fields = json.loads((folder / _FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None
