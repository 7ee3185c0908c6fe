"""The command line where the locale is not UTF-8: the same is asked, everything is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import PROGRAM, CommandLine, write_sim_config
from locales import latin1
from patience import limit_s
from terminal import Terminal

UMLAUTS = "Résumé → {{ text }} …"


@pytest.fixture
def cli(swarm_home: Path) -> Iterator[CommandLine]:
    line = CommandLine(swarm_home.with_name("hòme"))
    yield line
    line.clean_up()


def locale_of(kind: str, folder: Path) -> dict[str, str]:
    if kind == "latin1":
        return latin1(folder)
    return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("kind", ["latin1", "C"])
def test_the_same_is_asked_and_found_again_in_any_locale(
    cli: CommandLine, tmp_path: Path, kind: str
) -> None:
    sim = write_sim_config(tmp_path)
    source = tmp_path / "qüestions.parquet"
    pq.write_table(pa.table({"text": ["perché", "…"]}), source)
    other = {**cli.environment, **locale_of(kind, tmp_path)}

    def run(*words: object, env: dict[str, str] = other) -> str:
        done = subprocess.run(
            [PROGRAM, *map(str, words)],
            env=env,
            capture_output=True,
            timeout=limit_s(),
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    submit = ("job", "submit", "--name", "demo", "--input", source, "--prompt", UMLAUTS)
    run("up", "-c", sim.path)
    run(*submit, "--output", tmp_path / "öut.parquet", "--job-name", "Übung")
    assert pq.read_table(tmp_path / "öut.parquet").num_rows == 2
    assert sorted(sim.asked()) == ["Résumé → perché …", "Résumé → … …"]
    run(*submit, "--output", tmp_path / "again.parquet", env=cli.environment)  # in UTF-8
    assert len(sim.asked()) == 2  # the same job: nothing is asked again
    assert "Übung" in run("job", "list")
    listed = json.loads(run("job", "list", "--json"))
    assert {one["output"] for one in listed["jobs"]} >= {str(tmp_path / "öut.parquet")}
    assert "öut.parquet" in run("status", "demo")


PRINTS = (
    "from domyn_swarm.cli.console import use_utf8; use_utf8(); "
    "print('shown:', chr(0xE8) + chr(0x2192))"
)


def test_a_terminal_is_written_to_in_its_own_encoding(cli: CommandLine, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PRINTS]
    with Terminal(command, {**cli.environment, **latin1(tmp_path)}) as terminal:
        terminal.until("shown: \ufffd?")  # one byte, which is not UTF-8, and what it cannot show
    with Terminal(command, {**cli.environment, **locale_of("C", tmp_path)}) as terminal:
        terminal.until("shown: è→")
