"""The command and every extra, installed into an environment with nothing else in it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from command_line import CommandLine, write_sim_config
from install.environments import Environment
from install.packages import CONSTRAINTS, EXTRAS, ROOT, Packages, constrained
from install.resolution import lowest
from terminal import Terminal

pytestmark = [pytest.mark.install, pytest.mark.usefixtures("index")]

USES = Path(__file__).parent / "uses"
NOTEBOOKS = ROOT / "tests/jobs/test_notebook.py"  # needs Jupyter
ROWS = 20


# What asks most of the dependencies' interfaces. Not the rest: it tries processes and schedulers.
FAST_TESTS = (
    *("config", "engines", "jobs", "net", "planning", "state", "cli/test_top.py"),
    *(f"batch/test_{name}.py" for name in ("dataset", "inputs", "output_forms", "schema", "sink")),
)
TOOLS = (
    *("hypothesis", "jsonschema", "pytest", "pytest-asyncio", "pytest-randomly"),
    *("pytest-textual-snapshot", "pytest-timeout"),
)


@contextmanager
def installed(
    folder: Path, *requirements: str, constraints: Path | None = None, pip: bool = False
) -> Iterator[Environment]:
    """An environment with that in it, by pip or uv; says what it took, and is gone afterwards."""
    began = time.monotonic()
    environment = Environment.made(folder)
    try:
        if pip and constraints:
            environment.install_with_pip(*requirements, constraints=constraints)
        else:
            environment.install_with_uv(*requirements, constraints=constraints)
        took_s = time.monotonic() - began
        print(f"\n{took_s:.0f} s, {environment.megabytes():.0f} MB", end=" ")
        yield environment
    finally:
        shutil.rmtree(folder)


@contextmanager
def up(environment: Environment, home: Path, folder: Path) -> Iterator[CommandLine]:
    """The installed command, and a swarm of one simulator that it has brought up."""
    cli = CommandLine(home, environment.program)
    try:
        assert cli.ok("up", "-c", write_sim_config(folder).path) == "demo\n"
        yield cli
    finally:
        cli.clean_up()


def assert_works(environment: Environment, cli: CommandLine, folder: Path) -> None:
    """What everybody does first: look around, bring a swarm up, run a job, take the swarm down."""
    assert cli.ok("version", "--short").strip() == environment.versions()["domyn-swarm"]
    assert "job" in cli.ok("--help")
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    rows = [{"id": number, "prompt": f"question {number}"} for number in range(ROWS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = ("--input", source, "--output", target)
    cli.ok("job", "submit", "--name", "demo", *files, "--input-column", "prompt")
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in answers] == list(range(ROWS))
    assert all(row["result"].strip() for row in answers)
    seen = cli.json("status", "demo")
    assert (seen["name"], seen["observed"]) == ("demo", "ready")
    with sqlite3.connect(cli.home / "swarm.db") as database:  # made by the migrations of the wheel
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def assert_used(extra: str, environment: Environment, cli: CommandLine) -> None:
    """The extra does what it is for."""
    if extra == "tui":
        with Terminal([cli.program, "top", "demo"], cli.environment) as terminal:
            terminal.until("1 of 1 replica ready")
            terminal.press("q")
            assert terminal.ended() == 0
        return
    program, *arguments = {
        "pandas": ("frames.py", "pandas"),
        "polars": ("frames.py", "polars"),
        "openai": ("official_client.py",),
        "ray": ("ray_adapter.py",),
        "local": ("embedded_engine.py",),
        "lepton": ("lepton_sdk.py",),
    }[extra]
    assert environment.run("-I", USES / program, *arguments)


def parts(extra: str) -> list[str]:
    """The extras that one consists of."""
    if extra == "all":
        return [one for one in EXTRAS if one != "all"]
    return [extra] if extra else []


@pytest.mark.parametrize("constraints", [CONSTRAINTS, None], ids=["constrained", "newest"])
@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_it_works_with(
    packages: Packages, swarm_home: Path, elsewhere: Path, extra: str, constraints: Path | None
) -> None:
    wanted = packages.requirement(*filter(None, [extra]))
    with (
        installed(
            elsewhere / "venv", wanted, constraints=constraints, pip=constraints is not None
        ) as environment,
        up(environment, swarm_home, elsewhere) as cli,
    ):
        assert_works(environment, cli, elsewhere)
        for part in parts(extra):
            assert_used(part, environment, cli)


def test_it_works_from_the_sdist(packages: Packages, swarm_home: Path, elsewhere: Path) -> None:
    sdist = str(packages.sdist)
    with (
        installed(elsewhere / "venv", sdist, constraints=CONSTRAINTS, pip=True) as environment,
        up(environment, swarm_home, elsewhere) as cli,
    ):
        assert_works(environment, cli, elsewhere)


def test_what_lacks_its_extra_says_so(
    packages: Packages, swarm_home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_WORKSPACE_ID", "workspace")
    monkeypatch.setenv("LEPTONAI_API_TOKEN", "token")
    (elsewhere / "model.gguf").touch()
    (elsewhere / "local.yaml").write_text(
        "name: a\nmodel: ./model.gguf\nengine: llamacpp\nbackend: local\n", encoding="utf-8"
    )
    (elsewhere / "lepton.yaml").write_text(
        "name: b\nmodel: m\nengine: sim\n"
        "backend: {type: lepton, endpoint: {image: 'e:1', resource_shape: cpu.small}}\n",
        encoding="utf-8",
    )
    (elsewhere / "in.jsonl").write_text('{"prompt": "one"}\n', encoding="utf-8")
    files = ("--input", "in.jsonl", "--output", "out.jsonl", "--input-column", "prompt")
    submit = ("job", "submit", "--name", "demo", *files, "--data-backend")
    with (
        installed(elsewhere / "venv", packages.requirement(), constraints=CONSTRAINTS) as bare,
        up(bare, swarm_home, elsewhere) as cli,
    ):
        for extra, command in {
            "local": ("up", "-c", "local.yaml"),
            "lepton": ("up", "-c", "lepton.yaml"),
            "tui": ("top", "demo"),
            **{frames: (*submit, frames) for frames in ("pandas", "polars", "ray")},
        }.items():
            done = cli(*command)
            assert done.returncode in {2, 4}, (command, done.stdout, done.stderr)
            assert done.stdout == ""
            assert done.stderr.count("error: ") == 1
            assert f"pip install 'domyn-swarm[{extra}]'" in done.stderr
            assert "Traceback" not in done.stderr
        with pytest.raises(AssertionError, match=r"pip install 'domyn-swarm\[openai\]'"):
            bare.run("-I", USES / "official_client.py")


@pytest.mark.timeout(0)  # each of the tests that it runs has a limit
@pytest.mark.parametrize("versions", ["lowest", "newest"])
def test_the_fast_tests_pass_with(
    packages: Packages, swarm_home: Path, elsewhere: Path, versions: str
) -> None:
    extras = [extra for extra in EXTRAS if extra not in {"all", "lepton"}]  # openai 3 excludes it
    allowed = elsewhere / "lowest.txt"
    allowed.write_text(lowest(*extras), encoding="utf-8")
    held = constrained()
    tools = [f"{name}=={held[name]}" for name in TOOLS]
    with installed(
        elsewhere / "venv",
        *(packages.requirement(*extras), *tools),
        constraints=allowed if versions == "lowest" else None,
    ) as environment:
        with up(environment, swarm_home, elsewhere) as cli:
            assert_works(environment, cli, elsewhere)
            for extra in extras:
                assert_used(extra, environment, cli)
        chosen = [ROOT / "tests" / name for name in FAST_TESTS]
        pytest_there = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
        print(environment.run(*pytest_there, *chosen, "--ignore", NOTEBOOKS, cwd=ROOT)[-200:])


def test_lepton_works_with_the_lowest_versions(
    packages: Packages, swarm_home: Path, elsewhere: Path
) -> None:
    allowed = elsewhere / "lowest.txt"
    allowed.write_text(lowest("lepton"), encoding="utf-8")
    wanted = packages.requirement("lepton")
    with (
        installed(elsewhere / "venv", wanted, constraints=allowed) as environment,
        up(environment, swarm_home, elsewhere) as cli,
    ):
        assert_works(environment, cli, elsewhere)
        assert_used("lepton", environment, cli)
