"""Completion as people have it: real shells, a key pressed, what stands on the line then."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from command_line import PROGRAM
from domyn_swarm.model import JobStatus, SwarmPhase, utc_now
from domyn_swarm.state import JobRecord, SwarmRecord, SwarmStore
from patience import limit_s
from terminal import Terminal

BACKSLASH = "\\"
CLEAR = "\x15"  # Ctrl-U: an empty line
JOBS = {"20260101-a": None, "20260102-b": "night run", "20270101-c": "eval:2026"}
# What is typed, and the word that its last one is after a TAB.
ENDINGS = {
    "domyn-swarm sta": "status",
    "dswarm job canc": "cancel",
    "domyn-swarm job submit --data-backend po": "polars",
    "domyn-swarm job submit --data-backend=po": "--data-backend=polars",
    "domyn-swarm status al": "alpha",
    "domyn-swarm job status 20260102": "20260102-b",
    "domyn-swarm job logs nig": "night run",
    "domyn-swarm job wait --external-id nig": "night run",
    "domyn-swarm job wait --external-id=eval": "--external-id=eval:2026",
    "domyn-swarm job wait --external-id eval:": "eval:2026",
    "domyn-swarm logs alpha --job 2": "20260101-a",
    "true; LC_ALL=C domyn-swarm --log-format j": "json",
    "domyn-swarm config check swarm.y": "swarm.yaml",
    "domyn-swarm up --config=swarm.y": "--config=swarm.yaml",
}
SHELLS = {
    "bash": ([], ".bashrc"),
    "zsh": (["--no-globalrcs"], ".zshrc"),
    "fish": ([], ".config/fish/config.fish"),
}


def needed(shell: str) -> str:
    """The shell's program."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"COMPLETION IS NOT TESTED IN {shell}, which is not installed")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the shells are, with something to complete; the state has swarms and jobs."""
    (tmp_path / "swarm.yaml").touch()
    store = SwarmStore.open()
    for name in ("alpha", "beta"):
        store.create_swarm(
            SwarmRecord(
                name=name,
                tag=f"{name}.1",
                backend="local",
                phase=SwarmPhase.LAUNCHING,
                swarm_dir="/x",
                plan_json="{}",
                created_at=utc_now(),
                updated_at=utc_now(),
            )
        )
    for (job_id, external_id), swarm in zip(JOBS.items(), ("alpha", "beta", None), strict=True):
        store.create_job(
            JobRecord(
                job_id=job_id,
                name="n",
                swarm=swarm,
                platform="local",
                status=JobStatus.SUCCEEDED,
                job_dir="/x",
                input="i",
                output="o",
                external_id=external_id,
                submitted_at=utc_now(),
            )
        )
    return tmp_path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A person's, with a home where completion can be installed and a prompt to wait for."""
    home = tmp_path / "person"
    prompts = {
        ".bashrc": "PS1='ready> '",
        ".zshrc": "PS1='ready> '",
        ".config/fish/config.fish": "function fish_prompt; echo 'ready> '; end",
    }
    for name, line in prompts.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"{line}\n")
    path = f"{Path(PROGRAM).parent}:{os.environ['PATH']}"
    moved = {"XDG_CONFIG_HOME", "XDG_DATA_HOME", "ZDOTDIR", "BASH_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in moved}
    return {**kept, "HOME": str(home), "PATH": path, "SHELL": "/bin/sh"}


def install(shell: str, environment: dict[str, str]) -> list[str]:
    """Typed in the shell itself, which is not named; the files that it told."""
    done = subprocess.run(
        [needed(shell), "-c", "domyn-swarm --install-completion; exit"],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=True,
        env=environment,
    )
    assert done.stderr == f"Completion is active in each new {shell}.\n"
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_first_tab_of_a_new_shell_completes_and_so_does_every_other(
    shell: str, folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(shell, environment)
    monkeypatch.chdir(folder)
    flags, _ = SHELLS[shell]
    with Terminal([needed(shell), *flags, "-i"], environment, columns=200) as terminal:
        terminal.until("ready> ")
        for typed, ending in ENDINGS.items():
            terminal.press(f"{CLEAR}{typed}\t")
            before = typed.rpartition(" ")[0]
            terminal.until(f"{before} {ending.replace(' ', BACKSLASH + ' ')} ")
        terminal.press(f"{CLEAR}domyn-swarm job wait \t\t")
        for job_id in JOBS:
            terminal.until(job_id)
        terminal.press(f"{CLEAR}domyn-swarm job wait --\t\t")
        terminal.until("--handle-json")


def test_fish_completes(folder: Path, environment: dict[str, str]) -> None:
    install("fish", environment)
    script = "while read -l line; echo (complete --do-complete $line)[1]; end"
    done = subprocess.run(
        [needed("fish"), "-c", script],
        input="".join(f"{line}\n" for line in ENDINGS),
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=True,
        cwd=folder,
        env=environment,
    )
    assert done.stderr == ""
    found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert found == list(ENDINGS.values())


@pytest.mark.parametrize("shell", list(SHELLS))
def test_what_is_installed_is_what_is_shown_and_twice_is_once(
    shell: str, environment: dict[str, str]
) -> None:
    script, *start = map(Path, install(shell, environment))
    assert [script, *start] == [Path(one) for one in install(shell, environment)]
    shown = subprocess.run(
        [PROGRAM, "--show-completion", shell], capture_output=True, text=True, check=True
    )
    assert script.read_text() == shown.stdout
    if shell != "fish":
        assert start == [Path(environment["HOME"]) / SHELLS[shell][1]]
        assert start[0].read_text() == f"PS1='ready> '\n\nsource {script}\n"
    syntax = subprocess.run([needed(shell), "-n", script], capture_output=True, check=True)
    assert syntax.stderr == b""


def test_a_shell_that_is_none_of_them_and_a_home_that_is_closed_are_told(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    def refused(*args: str, **variables: str) -> str:
        done = subprocess.run(
            [PROGRAM, *args],
            capture_output=True,
            text=True,
            check=False,
            env={**environment, **variables},
        )
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    assert "'bash', 'zsh', 'fish'" in refused("--show-completion", "nu")
    (tmp_path / "file").touch()
    closed = refused("--install-completion", "bash", XDG_DATA_HOME=str(tmp_path / "file"))
    assert "cannot be written" in closed
    assert "--show-completion bash" in closed


def test_an_empty_or_broken_home_offers_nothing_and_says_nothing(
    swarm_home: Path, environment: dict[str, str]
) -> None:
    script = (
        'source <(domyn-swarm --show-completion bash); COMP_LINE="domyn-swarm status "; '
        'COMP_POINT=19; _domyn_swarm_completion domyn-swarm; echo "${#COMPREPLY[@]}"'
    )

    def offered() -> tuple[str, str]:
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout, done.stderr

    assert offered() == ("0\n", "")
    assert not swarm_home.exists()
    swarm_home.mkdir()
    (swarm_home / "swarm.db").write_text("no database")
    assert offered() == ("0\n", "")
