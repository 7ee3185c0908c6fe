"""Several logs read as one: order, ends, rotation, replicas that join later."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from domyn_swarm.services.merged_logs import Log, LogReader, time_of

AT = "2026-03-04T10:00:{:02}Z"


def write(path: Path, *lines: str, mode: str = "w") -> Path:
    with path.open(mode) as file:
        file.write("".join(f"{line}\n" for line in lines))
    return path


def read(*logs: Log, lines: int = 100) -> list[str]:
    return list(LogReader(lambda: logs, lines).lines())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("2026-03-04T10:00:05Z ready restarts=0", "2026-03-04T10:00:05+00:00"),
        ("2026-03-04T10:00:05.250+01:00 x", "2026-03-04T09:00:05.250+00:00"),
        ("2026-03-04 10:00:05,123 INFO x", "2026-03-04T10:00:05.123"),
        ("INFO 2026-03-04 10:00:05 [engine.py:7] x", "2026-03-04T10:00:05"),
    ],
)
def test_times_of_lines(line: str, text: str) -> None:
    assert time_of(line) == datetime.fromisoformat(text).timestamp()


def test_a_time_without_a_year_is_of_this_one_and_words_have_none() -> None:
    assert (
        time_of("INFO 01-02 10:00:05 [core.py:1] x")
        == datetime.fromisoformat(f"{time.localtime().tm_year}-01-02T10:00:05").timestamp()
    )
    for line in ("simulating m on 127.0.0.1:8000", "", "99-99 99:99:99"):
        assert time_of(line) is None


def test_lines_are_merged_in_the_order_of_time(tmp_path: Path) -> None:
    first = write(tmp_path / "0", "no time yet", AT.format(1) + " a", "  of a", AT.format(5) + " b")
    second = write(tmp_path / "1", AT.format(2) + " c", AT.format(9) + " d")
    assert read(Log(first, "0", "0"), Log(second, "1", "1")) == [
        "[0] no time yet",
        f"[0] {AT.format(1)} a",
        "[0]   of a",
        f"[1] {AT.format(2)} c",
        f"[0] {AT.format(5)} b",
        f"[1] {AT.format(9)} d",
    ]


def test_the_last_lines_are_counted_by_group_and_only_wanted_ones(tmp_path: Path) -> None:
    engine = write(tmp_path / "e", *(f"{AT.format(second)} e" for second in range(0, 60, 2)))
    states = write(tmp_path / "w", *(f"{AT.format(second)} w" for second in range(1, 60, 2)))
    wanted = Log(states, "w", "0", lambda line: line.startswith(AT.format(55)))
    assert read(Log(engine, "", "0"), wanted, lines=3) == [
        f"[w] {AT.format(55)} w",
        f"{AT.format(56)} e",
        f"{AT.format(58)} e",
    ]
    assert read(Log(engine, "", "0"), lines=0) == []


def test_the_end_of_a_large_file_is_whole_lines(tmp_path: Path) -> None:
    large = write(tmp_path / "large", *(f"line {number} " + "x" * 50 for number in range(20_000)))
    assert [line.split()[1] for line in read(Log(large, ""), lines=3000)] == [
        str(number) for number in range(17_000, 20_000)
    ]


@pytest.mark.parametrize("lines", [1, 3])
def test_no_line_of_a_large_file_is_looked_at_again_and_again(tmp_path: Path, lines: int) -> None:
    """Those that are wanted stand at its beginning."""
    count = 40_000
    large = write(tmp_path / "large", *(f"line {number} " + "x" * 50 for number in range(count)))
    looked = 0

    def wanted(line: str) -> bool:
        nonlocal looked
        looked += 1
        return line.startswith(("line 1 ", "line 2 ", "line 3 "))

    found = read(Log(large, "", "", wanted), lines=lines)
    assert [line.split()[1] for line in found] == ["1", "2", "3"][-lines:]
    assert looked <= 2 * count  # to find them, and to show them


@pytest.mark.parametrize("last", ["", "\nend"])
def test_lines_longer_than_what_is_read_at_a_time_are_whole(tmp_path: Path, last: str) -> None:
    log = tmp_path / "log"
    long = "".join(f"{number:07} " for number in range(100_000))
    log.write_text(f"one\n{long}{last}")
    assert read(Log(log, ""), lines=3) == ["one", long, *last.split()]
    assert read(Log(log, ""), lines=1) == [last.strip() or long]


class Following:
    """A reader that follows, and what it has told so far."""

    def __init__(self, logs: list[Log], lines: int = 0) -> None:
        self.over = False
        self._lines: Iterator[str] = LogReader(lambda: logs, lines, lambda: self.over).lines()

    def next(self, count: int) -> list[str]:
        return [next(self._lines) for _ in range(count)]

    def rest(self) -> list[str]:
        self.over = True
        return list(self._lines)


def test_what_is_written_later_is_told_in_whole_lines_until_the_end(tmp_path: Path) -> None:
    log = write(tmp_path / "log", "old")
    following = Following([Log(log, "")])
    with log.open("a") as file:
        file.write("new\nhal")
    assert following.next(1) == ["new"]
    write(log, "f", "last", mode="a")
    assert following.rest() == ["half", "last"]


def test_a_line_that_is_being_written_is_told_once_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntw")
    following = Following([Log(log, "")], lines=10)
    assert following.next(1) == ["one"]
    write(log, "o", mode="a")
    assert following.rest() == ["two"]


@pytest.mark.parametrize("how", ["truncated", "replaced", "not there yet"])
def test_a_file_that_is_made_anew_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    log = tmp_path / "log"
    if how != "not there yet":
        write(log, "old", "older")
    following = Following([Log(log, "")])
    if how == "truncated":
        os.truncate(log, 0)
    elif how == "replaced":
        log.rename(tmp_path / "log.1")
    write(log, "a", "b", mode="a")
    assert following.rest() == ["a", "b"]


def test_replicas_that_join_later_are_followed_from_their_beginning(tmp_path: Path) -> None:
    logs = [Log(write(tmp_path / "0", "old"), "0")]
    following = Following(logs)
    write(tmp_path / "0", "x", mode="a")
    assert following.next(1) == ["[0] x"]
    logs.append(Log(write(tmp_path / "1", "hello"), "1"))
    assert following.rest() == ["[1] hello"]
