"""One logging configuration: where lines go, how they look, and never two handlers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import CommandLine
from domyn_swarm.errors import ConfigError
from domyn_swarm.logs import configure

PROGRAM = """
import sys
from domyn_swarm.logs import configure, get_logger
for _ in range(3):
    configure("INFO")
log = get_logger("domyn_swarm.somewhere")
log.debug("not this")
log.info("first %s", "line\\nbroken")
try:
    raise RuntimeError("why")
except RuntimeError:
    get_logger("elsewhere").exception("second")
"""


def logged(program: str = PROGRAM, **environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout, done.stderr


def test_every_line_is_written_once_to_stderr_however_often_it_is_configured() -> None:
    out, errors = logged()
    assert out == ""
    assert errors.count("INFO domyn_swarm.somewhere: first") == 1
    assert errors.count("ERROR domyn_swarm.elsewhere: second") == 1
    assert "RuntimeError: why" in errors
    assert "not this" not in errors


def test_as_json_every_line_is_an_object() -> None:
    out, errors = logged(DOMYN_SWARM_LOG_FORMAT="json")
    assert out == ""
    first, second = (json.loads(line) for line in errors.splitlines())
    assert (first["level"], first["logger"]) == ("info", "domyn_swarm.somewhere")
    assert first["message"] == "first line\nbroken"
    assert first["at"].endswith("+00:00")
    assert "RuntimeError: why" in second["error"]


def test_the_environment_chooses_the_level_of_every_program() -> None:
    assert "first" not in logged(DOMYN_SWARM_LOG_LEVEL="error")[1]
    assert "not this" in logged(DOMYN_SWARM_LOG_LEVEL="DEBUG")[1]


def test_a_program_that_has_a_handler_of_its_own_keeps_it_alone() -> None:
    program = (
        "import logging, sys\n"
        "from domyn_swarm.logs import configure, get_logger\n"
        "own = logging.StreamHandler(sys.stdout)\n"
        "logging.getLogger('domyn_swarm').addHandler(own)\n"
        "configure('INFO')\n"
        "get_logger('here').info('once')\n"
    )
    assert logged(program) == ("once\n", "")


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("DOMYN_SWARM_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("DOMYN_SWARM_LOG_FORMAT", "xml", "text, json"),
    ],
)
def test_what_is_none_of_the_values_is_one_clear_error(
    variable: str, value: str, allowed: str, swarm_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{variable} is '{value}'"):
        configure(environ={variable: value})
    monkeypatch.setenv(variable, value)
    done = CommandLine(swarm_home)("swarm", "list")
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == f"error: {variable} is {value!r}, which is not one of {allowed}."
    assert second.startswith("hint: ")
    assert not swarm_home.exists()


def test_nothing_is_configured_by_importing() -> None:
    program = (
        "import logging, domyn_swarm\n"
        "domyn_swarm.DomynLLMSwarm, domyn_swarm.job\n"
        "print(logging.getLogger('domyn_swarm').handlers, logging.root.handlers)\n"
    )
    assert logged(program)[0] == "[] []\n"
