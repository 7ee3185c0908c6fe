"""What commands print as JSON is a promise: its schemas are kept, and change only on purpose."""

from __future__ import annotations

import pytest

import schemas
from command_tree import commands


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_a_record_is_what_was_promised(name: str) -> None:
    assert schemas.schema(name) == schemas.golden(name), (
        f"The schema of {name} has changed. When that is meant: make golden, and say it in the "
        "changelog; a field that went or changed its meaning needs another schema_version."
    )


def test_every_record_has_its_file_and_no_other() -> None:
    assert {path.stem for path in schemas.GOLDEN.glob("*.json")} == set(schemas.RECORDS)
    assert set(schemas.PRINTS.values()) <= set(schemas.RECORDS)


@pytest.mark.parametrize("name", schemas.RECORDS)
def test_every_record_says_its_version(name: str) -> None:
    assert schemas.golden(name)["properties"]["schema_version"]["const"] >= 1


def test_every_command_that_prints_json_is_known() -> None:
    printing = {
        " ".join(words)
        for words, command in commands().items()
        if any("--json" in option.opts for option in command.params)
    }
    asked = {
        one.partition(" --")[0] for one in schemas.PRINTS if schemas.PRINTS[one] != "job-handle"
    }
    assert printing == asked
