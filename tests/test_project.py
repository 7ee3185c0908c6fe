"""Rules about the project's own files that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "domyn_swarm"
MODULES = sorted(SOURCE.rglob("*.py"))
GENERATED = tuple(
    f"{up}{name}/" for name in ("reference", "examples", "pictures") for up in ("", "../")
)  # pages of the site; its own build checks them
INTERNALS = ("serving", "slurm", "jobs", "records", "where")
MAPS = ["architecture.md", *(f"internals/{page}.md" for page in INTERNALS)]
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listing.stdout.splitlines()]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_is_short_and_says_what_it_is(path: Path) -> None:
    assert path.stem not in VAGUE_NAMES
    longest = 1000 if path.name == "watchdog.py" else 400  # it travels with its rules alone
    assert len(path.read_text(encoding="utf-8").splitlines()) < longest
    assert ast.get_docstring(_tree(path)), "a module needs a docstring"


COPIED = ["follower", "restart_budget", "watchdog", "watchdog_ledger", "watchdog_rules"]


@pytest.mark.parametrize("name", COPIED)
def test_what_is_copied_next_to_engines_imports_the_standard_library_alone(name: str) -> None:
    imported = {
        name.split(".")[0]
        for node in ast.walk(_tree(SOURCE / f"{name}.py"))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    imported -= {"domyn_swarm", *COPIED}  # which lie beside it
    assert imported
    assert imported <= set(sys.stdlib_module_names)


def test_constraints_are_exact_versions_of_names() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 50
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert wrong == []


def test_no_file_holds_an_absolute_path_of_the_machine_it_was_written_on() -> None:
    # Spelled so that this file does not match itself.
    private = re.compile(r"(?<![\w.])/(?:root|wor[k])/|file:///[o]pt/")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked()
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".txt", ".sh", ".yaml", ""}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists() and not target.startswith(GENERATED)
    ]
    assert broken == []


@pytest.mark.parametrize("page", MAPS)
def test_modules_that_the_map_names_are_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    floors = "|".join(sorted(one.stem for one in SOURCE.iterdir()))
    named = re.findall(rf"`((?:{floors})(?:/[a-z_0-9]+)+)`", text)
    missing = [
        one for one in named if not (SOURCE / one).is_dir() and not (SOURCE / f"{one}.py").is_file()
    ]
    assert named
    assert not missing


def test_drawings_name_modules_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    floors = "|".join(sorted(one.stem for one in SOURCE.iterdir()))
    drawings = "\n".join(re.findall(r"```mermaid\n(.+?)```", text, re.DOTALL))
    named = re.findall(rf"\b(?:{floors})(?:/[a-z_0-9]+)+", drawings)
    assert named
    assert not [one for one in named if not (SOURCE / f"{one}.py").is_file()]


def test_the_table_of_floors_and_its_contract_name_everything_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    there = sorted(one.stem for one in SOURCE.iterdir() if one.suffix == ".py" or one.is_dir())
    there = [one for one in there if not one.startswith("__")]
    table = text[text.index("| floor | contents |") : text.index("Two lists are tested")]
    assert [one for one in there if f"`{one}`" not in table] == []
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert sorted(re.findall(r"\w+", " ".join(layers))) == there


def test_names_that_answer_where_something_is_are_defined_there() -> None:
    text = (ROOT / "docs" / "internals" / "where.md").read_text(encoding="utf-8")
    answers = re.findall(r"^\| [^|]+ \| `([a-z_0-9/]+)` \| `([A-Za-z_.]+)` \|$", text, re.MULTILINE)
    questions = [line for line in text.splitlines() if line.startswith("| ") and "?" in line]
    missing = [(module, name) for module, name in answers if not _defines(module, name)]
    assert len(answers) == len(questions) >= 10
    assert not missing
    others = [ROOT / "docs" / page for page in MAPS if page != "internals/where.md"]
    pages = "".join(page.read_text(encoding="utf-8") for page in others)
    assert [module for module, _ in answers if f"`{module}`" not in pages] == []


def _defines(module: str, name: str) -> bool:
    body: Sequence[ast.AST] = _tree(SOURCE / f"{module}.py").body
    for part in name.split("."):
        named = [one for one in body if part in _names_of(one)]
        if not named:
            return False
        body = list(ast.iter_child_nodes(named[0]))
    return True


def _names_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [one.id for one in targets if isinstance(one, ast.Name)]


def test_every_command_is_in_the_reference() -> None:
    from command_tree import commands

    pages = (ROOT / "docs" / "commands").glob("*.md")
    reference = "".join(page.read_text(encoding="utf-8") for page in pages)
    paths = [" ".join(("domyn-swarm", *words)) for words in commands()]
    missing = [path for path in paths if f"## `{path}`\n" not in reference]
    assert missing == []


def _in_the_locales_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text as the site's locale has it."""
    method = isinstance(call.func, ast.Attribute)
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    keys = {one.arg: one.value for one in call.keywords}
    if "encoding" in keys:
        return False
    if name in {"read_text", "write_text"}:
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in {"run", "Popen", "check_output"}:
        return not keys.keys().isdisjoint({"text", "universal_newlines"})
    if name not in {"open", "fdopen"}:
        return False
    place = 0 if method and name == "open" else 1
    mode = keys.get("mode", call.args[place] if len(call.args) > place else ast.Constant("r"))
    if place == 0 and not call.args:
        return False  # what classes of ours call opening
    return isinstance(mode, ast.Constant) and not {"b", "/"} & set(str(mode.value))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_text_is_utf8_whatever_the_sites_locale(path: Path) -> None:
    """A file that is written on one node is read on another, whose locale may differ."""
    calls = (one for one in ast.walk(_tree(path)) if isinstance(one, ast.Call))
    assert [one.lineno for one in calls if _in_the_locales_encoding(one)] == []
