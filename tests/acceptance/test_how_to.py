"""The how-to pages: what they tell to type works as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import CommandLine
from typed_pages import type_out

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "pools.md", DOCS / "monitoring.md"]


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_works_as_it_stands(page: Path, cli: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    type_out(page, folder, cli.environment)
