"""Who is at work on something: as long as its process lives, and no longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domyn_swarm.claims import claim, is_held, release, renew


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "claim.json"


def left_by(host: str, path: Path, *, age_s: float) -> None:
    """A claim of another machine's process, renewed last so long ago."""
    claim(path)
    written = json.loads(path.read_text())
    written["location"] |= {"name": host, "boot_id": "another", "machine_id": "another"}
    path.write_text(json.dumps(written))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_a_claim_is_held_until_it_is_released(path: Path) -> None:
    assert not is_held(path)
    claim(path)
    assert is_held(path)
    release(path)
    assert not is_held(path)
    release(path)


def test_a_claim_ends_with_its_process(path: Path) -> None:
    program = (
        "from pathlib import Path; import sys; from domyn_swarm.claims import claim;"
        "claim(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.exists()
    assert not is_held(path)


@pytest.mark.parametrize(("age_s", "held"), [(-60.0, True), (300.0, True), (900.0, False)])
def test_one_of_another_machine_is_held_while_it_is_renewed(
    path: Path, age_s: float, *, held: bool
) -> None:
    left_by("another-machine", path, age_s=age_s)
    assert is_held(path) is held
    renew(path)
    assert is_held(path)


@pytest.mark.parametrize("text", ["", "{}", '{"host": "here"}', "[1]", "\x00"])
def test_what_is_no_claim_keeps_nobody_out(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    assert not is_held(path)


def test_a_claim_that_is_gone_is_renewed_in_vain(path: Path) -> None:
    renew(path)
    assert not path.exists()
