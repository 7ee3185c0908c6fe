"""How a job is named, by its module, by its file or by its name alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs import __all__ as exported
from domyn_swarm.jobs.job_loading import load_job, located

JOB = """
from domyn_swarm import job

@job
async def shout(item):
    return item.upper()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a job in a file, and one in a package; nothing stays imported."""
    (tmp_path / "pack/inner").mkdir(parents=True)
    for name in ("loud_jobs.py", "my-jobs.py", "json.py", "pack/inner/quiet.py"):
        (tmp_path / name).write_text(JOB)
    for name in ("pack", "pack/inner"):
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "pack"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("loud_jobs", "pack", "pack.inner", "pack.inner.quiet"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("reference", "module"),
    [
        ("loud_jobs:shout", "loud_jobs"),
        ("loud_jobs.py:shout", "loud_jobs"),
        ("./loud_jobs.py:shout", "loud_jobs"),
        ("pack/inner/quiet.py:shout", "pack.inner.quiet"),
        ("~/inner/quiet.py:shout", "pack.inner.quiet"),
    ],
)
def test_a_job_in_a_module_or_a_file(folder: Path, reference: str, module: str) -> None:
    found = located(reference)
    assert found == (f"{module}:shout", str(folder))
    assert load_job(found.reference, {}, import_path=found.import_path).label == "shout"


def test_a_built_in_job_by_its_name_alone(folder: Path) -> None:
    for name in {*exported} - {"SwarmJob", "job"}:
        assert located(name) == (f"domyn_swarm.jobs:{name}", None)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("ChatCompletonJob", "Did you mean ChatCompletionJob"),
        ("SwarmJob", "name of a built-in job: .*ChatCompletionJob"),
        ("loud_jobs.py", "loud_jobs.py:NAME"),
        ("pack/inner/quiet:shout", "pack/inner/quiet.py:shout"),
        ("loud_jobs:", "MODULE:NAME"),
        (":shout", "MODULE:NAME"),
        ("nowhere.py:shout", "There is no file .*nowhere.py"),
        ("my-jobs.py:shout", "no name of a module"),
        ("json.py:shout", "another module is called 'json'"),
    ],
)
def test_what_is_no_job(folder: Path, reference: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"[\s\S]*{told}"):
        located(reference)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("loud_jobs:shuot", "has no 'shuot'.*\n.*mean shout"),
        ("loud_jobs:zzz", "\nIt has: shout"),
        ("domyn_swarm.jobs:TemplatJob", "mean TemplateJob"),
        ("json:loads", "is a function, not a job"),
        ("string:Template", "not a subclass"),
        ("string:Templ", "It has no job"),
    ],
)
def test_what_a_module_does_not_have(folder: Path, reference: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_job(reference, {}, import_path=str(folder))
