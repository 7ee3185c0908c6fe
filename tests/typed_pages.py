"""Pages that tell what to type: their files are written, and what they tell to type is typed.

A fenced block with a title is a file of that name; a block of `sh` is typed; others are shown only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import warm
from command_line import ENTRY
from patience import limit_s
from ray_fixtures import RAY_SETTINGS

_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
_PAGES = 3  # a page starts and stops swarms, one after the other
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        title = _TITLE.search(found["info"])
        yield Block(found["language"], title[1] if title else None, found["text"])


def type_out(
    page: Path,
    folder: Path,
    environment: Mapping[str, str],
    instead: Mapping[str, str] | None = None,
) -> str:
    """Write the page's files into a folder and type what it tells there; everything printed.

    Typing ends with the first command that fails, and that fails the test. `domyn-swarm` is forked
    from a process that has imported it. `instead` holds what stands in the files for things that
    this machine has not.
    """
    typed = []
    left = dict(instead or {})
    for block in blocks(page):
        if block.title:
            text = block.text
            for word in [one for one in left if one in text]:
                text = text.replace(word, left.pop(word))
            (folder / block.title).write_text(text, encoding="utf-8")
        elif block.language == "sh":
            typed.append(block.text)
    assert typed, f"{page} tells nothing to type"
    assert not left, f"{page} has no {list(left)} any more"
    with warm.doorway("domyn-swarm", ENTRY) as programs:
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", "\n".join(typed)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_PAGES * limit_s(),
            check=False,
            env={**environment, **RAY_SETTINGS, "PATH": path},
        )
    assert done.returncode == 0, done.stdout
    return done.stdout
