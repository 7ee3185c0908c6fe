"""A ledger with files that were cut off, damaged, or are none of ours: what of it cannot be counted
is named, with its file, and everything else is counted.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from domyn_swarm.backends import ledger, ledger_files
from domyn_swarm.backends.gpu_time import Span, Use
from domyn_swarm.backends.ledger import SwarmEntry
from domyn_swarm.model import utc_now
from domyn_swarm.services.kept_spans import keep_spans, read_spans
from domyn_swarm.services.usage import UsageService
from domyn_swarm.services.usage_report import SwarmSpans, Used

BEGAN = 1_796_000_000.0


def entered(tag: str, folder: Path) -> SwarmEntry:
    entry = SwarmEntry(
        tag=tag,
        name="demo",
        backend="local",
        user="u",
        swarm_dir=str(folder / "swarm"),
        model="m",
        gpus_per_replica=1,
        created_at=utc_now() - timedelta(days=1),
    )
    ledger.enter(entry, 1)
    return entry


def kept(tag: str, folder: Path) -> Path:
    """An hour of a swarm that is over."""
    entry = entered(tag, folder)
    spans = [
        Span(BEGAN, BEGAN + 1800, Use.WORKING, "", "j1", 1),
        Span(BEGAN + 1800, BEGAN + 3600, Use.NO_WORK, "", None, 1),
    ]
    used = [Used(5.0, 1800.0), None]
    path = ledger.entry_folder(tag) / "spans.jsonl"
    keep_spans(path, SwarmSpans(entry, {0: spans}, {0: used}, {0: 1}, {"j1": ("job", "u")}))
    return path


def test_what_is_kept_is_what_is_read(swarm_home: Path, tmp_path: Path) -> None:
    path = kept("a.1", tmp_path)
    [entry] = ledger.entries()
    swarm_spans = read_spans(entry, path)
    assert [one.end - one.begin for one in swarm_spans.spans[0]] == [1800.0, 1800.0]
    assert swarm_spans.used[0] == [Used(5.0, 1800.0), None]
    head, *rest = path.read_text().splitlines()
    older = {name: value for name, value in json.loads(head).items() if name != "spans"}
    path.write_text("\n".join([json.dumps(older), *rest]))  # earlier versions did not count them
    assert read_spans(entry, path).spans == swarm_spans.spans


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda _: b"", 1),
        (lambda text: text[:20], 1),
        (lambda text: text[: text.index(b"\n") + 30], 2),
        (lambda text: text[: text.index(b"\n") + 1], 2),  # cut off where a line ends
        (lambda text: text[: text.rindex(b"\n", 0, -1) + 1], 3),
        (lambda text: b"[]\n" + text, 1),
        (lambda _: b"null", 1),
        (lambda text: text + b"[0]\n", 4),
        (lambda text: text.replace(b"working", b"resting"), 2),
        (lambda text: text.replace(b'"working"', b"7"), 2),
        (lambda text: text.replace(b'"version": 1', b'"version": 2'), 1),
        (lambda text: b"\xff\xfe" + text, 1),
    ],
)
def test_a_damaged_file_is_named_and_all_others_are_counted(
    swarm_home: Path, tmp_path: Path, damage: object, line: int
) -> None:
    assert callable(damage)
    path = kept("a.1", tmp_path)
    kept("b.2", tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    found = UsageService().usage()
    [unread] = found.unread
    assert f"{path}, line {line}: " in unread
    assert "Remove that file" in unread
    assert found.total.held_gpu_s == 3600.0
    path.unlink()
    assert UsageService().usage().unread == ()  # the hint holds


def test_an_entry_that_cannot_be_read_is_named(swarm_home: Path, tmp_path: Path) -> None:
    kept("a.1", tmp_path)
    broken = kept("b.2", tmp_path).with_name("swarm.json")
    broken.write_text("{")
    (ledger.ledgers_dir() / "c.3").mkdir()  # `up` was killed before it wrote anything
    (ledger.ledgers_dir() / "notes").touch()
    found = UsageService().usage()
    [unread] = found.unread
    assert str(broken) in unread
    assert found.total.held_gpu_s == 3600.0


def test_lines_that_are_none_are_left_out(swarm_home: Path, tmp_path: Path) -> None:
    entry = entered("a.1", tmp_path)
    wanted = ledger.entry_folder("a.1") / "wanted.jsonl"
    wanted.write_text(
        '{"at": 100, "replicas": 2}\n{}\n{"at": "x", "replicas": 1}\nnull}\n{"replicas": 2}\n'
        '{"at": 150, "replicas": "x"}\n[3]\n{"at": 200, "replicas": [0]}\n{"at": 300, "repl'
    )
    assert ledger.wanted("a.1", 400.0) == {0: [(100.0, 400.0)], 1: [(100.0, 200.0)]}
    wanted.write_text("")
    assert ledger.wanted("a.1", 400.0) == {}

    folder = tmp_path / "written"
    folder.mkdir()
    (folder / "task-0.jsonl").write_text(
        '{"job": "7_0", "began": "x", "replicas": [0]}\n{"began": 1}\n[]\n"x"\n'
        '{"job": "7_0", "began": 10, "replicas": [0]}\n{"ended": "x"}\n{"ended": 20}\n{"en'
    )
    [empty, task] = ledger_files.read(folder).tasks
    assert (empty.replicas, task.job, task.began, task.ended) == ((), "7_0", 10.0, 20.0)
    assert UsageService().swarm_spans(entry) is not None
