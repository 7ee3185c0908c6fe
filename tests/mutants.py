"""Plants the faults of `mutants.toml`, one at a time, in a copy of the sources, and requires that
the tests named for each notice: `make test-mutants`.

A fault is killed when one of its tests fails, not when it cannot be collected or hangs. Two checks
make sure of the harness itself: without a fault all of these tests pass, and a fault that is only a
comment survives. Each run of pytest says which `domyn_swarm` it, and a process that it starts, has
imported: the copy, or nothing counts.

This module is also the plugin by which such a run reports.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import py_compile
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src", "domyn_swarm")
_REPORT = "DOMYN_SWARM_MUTANTS_REPORT"  # where a run reports; also marks its processes
_WHERE = "import domyn_swarm; print(domyn_swarm.__file__)"
_PASSED, _FAILED = 0, 1  # exit codes of pytest


@dataclass(frozen=True)
class Mutant:
    """One fault, and the tests that notice it."""

    name: str
    kind: str
    file: str  # in the package
    text: str
    replacement: str
    breaks: str  # for a user
    killed_by: tuple[str, ...]

    def planted(self, source: str) -> str:
        """The file with the fault.

        Raises:
            ValueError: the text does not stand exactly once in it.
        """
        if source.count(self.text) != 1:
            raise ValueError(f"{self.file} has the text {source.count(self.text)} times")
        return source.replace(self.text, self.replacement)


def read_mutants() -> list[Mutant]:
    """Those of the list, in its order."""
    entries = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))
    return [
        Mutant(**{**entry, "killed_by": tuple(entry["killed_by"])}) for entry in entries["mutant"]
    ]


class Copy:
    """The sources in another folder. Bytecode there is believed by the hash of its source, since
    files that are changed twice within a second may have the same time and size.
    """

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src"
        shutil.copytree(ROOT / "src", self.source, ignore=shutil.ignore_patterns("__pycache__"))
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(self.source, quiet=1, invalidation_mode=mode)
        self._report = folder / "report.json"

    @contextlib.contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """A file of the package says `text` instead."""
        path = self.source / PACKAGE.name / file
        before = path.read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")

    def read(self, file: str) -> str:
        """A file of the package."""
        return (self.source / PACKAGE.name / file).read_text(encoding="utf-8")

    def failures(self, *arguments: str) -> list[str]:
        """Which fast tests fail of those that the arguments of pytest select.

        Raises:
            RuntimeError: it cannot be said: no test ran, one cannot be collected, the run hangs, or
                it tested other sources.
        """
        from patience import limit_s  # not in a run: pytest imports it for itself

        self._report.unlink(missing_ok=True)
        mark = secrets.token_hex(8)
        report = f"{self._report}?{mark}"
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(self.source), str(ROOT / "tests"))),
            _REPORT: report,
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants", "-p", "no:cacheprovider"]
        command += ["-p", "no:randomly", "-m", "fast", *arguments]
        run = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = run.communicate(timeout=limit_s())
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the run hangs, for {limit_s():.0f} s") from None
        finally:
            _end_processes(report)
            run.wait()
        if run.returncode not in {_PASSED, _FAILED} or not self._report.exists():
            raise RuntimeError(f"pytest ended with {run.returncode}:\n{output[-2000:]}")
        told = json.loads(self._report.read_text(encoding="utf-8"))
        foreign = [one for one in told["imported"] if not Path(one).is_relative_to(self.source)]
        if foreign:
            raise RuntimeError(f"it tested {foreign}")
        if bool(told["failed"]) != (run.returncode == _FAILED):
            raise RuntimeError(f"nothing that was run failed:\n{output[-2000:]}")
        return list(told["failed"])


def _end_processes(report: str) -> None:
    """What a run has started carries the name of its report."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(_REPORT) == report:
                process.kill()


class Reporter:
    """Within a run of pytest: what failed, and of which sources."""

    def __init__(self) -> None:
        self._failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a test that failed, in its fixtures or itself."""
        if report.failed and report.when != "teardown":
            self._failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write it down."""
        import domyn_swarm

        child = subprocess.run(
            [sys.executable, "-c", _WHERE], capture_output=True, text=True, check=True
        )
        imported = [str(domyn_swarm.__file__), child.stdout.strip()]
        path = Path(os.environ[_REPORT].partition("?")[0])
        path.write_text(json.dumps({"failed": self._failed, "imported": imported}))


def pytest_configure(config: pytest.Config) -> None:
    """As a plugin."""
    config.pluginmanager.register(Reporter())


def verdict(copy: Copy, mutant: Mutant) -> str:
    """`killed`, `SURVIVED`, or what is wrong with the mutant."""
    try:
        planted = mutant.planted(copy.read(mutant.file))
        with copy.changed(mutant.file, planted):
            failed = copy.failures("-x", *mutant.killed_by)
    except (ValueError, RuntimeError) as error:
        return f"BROKEN: {error}"
    return "killed" if failed else "SURVIVED"


def _harness_is_wrong(copy: Copy, mutants: Sequence[Mutant]) -> str | None:
    """Why verdicts would mean nothing."""
    killers = dict.fromkeys(node for mutant in mutants for node in mutant.killed_by)
    first = mutants[0]
    try:
        failed = copy.failures(*killers)
        if failed:
            return f"without a fault these fail: {', '.join(failed)}"
        with copy.changed(first.file, copy.read(first.file) + "# a comment\n"):
            if copy.failures(*first.killed_by):
                return "a comment is killed"
    except RuntimeError as error:
        return str(error)
    return None


def main(words: Sequence[str]) -> int:
    """Judge the mutants whose names or kinds contain one of the words; all without words."""
    chosen = [
        mutant
        for mutant in read_mutants()
        if not words or any(word in f"{mutant.kind} {mutant.name}" for word in words)
    ]
    if not chosen:
        print("there is no such fault")
        return 1
    import patience

    patience.pytest_configure()  # once for all runs
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="domyn-swarm-mutants-") as folder:
        copy = Copy(Path(folder))
        wrong = _harness_is_wrong(copy, chosen)
        if wrong is not None:
            print(wrong)
            return 1
        print("without a fault all pass; a comment survives")
        for mutant in chosen:
            began = time.monotonic()
            verdicts.append(verdict(copy, mutant))
            took_s = time.monotonic() - began
            print(f"{mutant.kind:10}  {verdicts[-1]:8}  {took_s:4.1f} s  {mutant.name}", flush=True)
    print(f"{verdicts.count('killed')} of {len(verdicts)} killed")
    return int(set(verdicts) != {"killed"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
