"""The how-to pages: their files are written, and what they tell to type is typed, in order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import CommandLine

HOW_TO = sorted((Path(__file__).parents[2] / "docs" / "how-to").glob("*.md"))
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: a file when it has a title, else something to type."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        title = _TITLE.search(found["info"])
        yield Block(found["language"], title[1] if title else None, found["text"])


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_works_as_it_stands(page: Path, cli: CommandLine, tmp_path: Path) -> None:
    """Its files are written, and everything it tells to type is typed, in order."""
    folder = tmp_path / "here"
    folder.mkdir()
    typed = []
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            typed.append(block.text)
    assert typed, "a how-to page tells what to type"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(typed)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env={
            **cli.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
