"""The page about earlier versions says what is true: no key that it lists as kept has gone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_tree import commands
from domyn_swarm.config.mistakes import _OLDER, _known_keys
from domyn_swarm.config.models import DomynLLMSwarmConfig

PAGE = (Path(__file__).parents[2] / "docs/how-to/coming-from-0.3.md").read_text("utf-8")
KEPT = PAGE.partition("## Keys that are what they were")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (`[^|]+|the top level) \| (`.+) \|$", KEPT, re.MULTILINE)


@pytest.mark.parametrize(("section", "keys"), ROWS)
def test_keys_that_are_kept_are_there(section: str, keys: str) -> None:
    at = tuple(re.findall(r"`([^`]+)`", section)[0].split(".")) if "`" in section else ()
    backend = {"type": section.rpartition(" ")[2]} if " of type " in section else {}
    assert {*re.findall(r"`(\w+)`", keys)} <= {*_known_keys(DomynLLMSwarmConfig, at, backend)}


def test_the_page_has_every_name_that_is_told_of() -> None:
    assert len(ROWS) == 9
    for name in _OLDER:
        assert f"| `{name}` |" in PAGE
    kept = re.findall(r"`([a-z -]+)`", PAGE.partition("## Commands")[2])
    assert len(kept) > 20
    assert {tuple(one.split()) for one in kept} <= {*commands()}
