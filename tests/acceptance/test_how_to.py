"""The how-to pages: what they tell to type works as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import CommandLine
from patience import until
from typed_pages import type_out

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "pools.md", DOCS / "monitoring.md"]


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_works_as_it_stands(
    page: Path, cli: CommandLine, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    environment = cli.environment
    if page.stem == "ray":  # its script starts a cluster, its command takes one that is there
        environment["RAY_ADDRESS"] = request.getfixturevalue("ray_cluster").address
    type_out(page, folder, environment)
    until(lambda: cli.processes() == [])  # Ray's workers end a little later than their job
