"""Limits of open files: raised for good in our programs, for a while in somebody else's."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading

import pytest

from domyn_swarm import open_files
from open_file_limits import no_files_left, soft_limit
from patience import limit_s

RAISES = "from domyn_swarm import open_files as o; print(o.raise_limit({}), *o.limits())"


@pytest.mark.parametrize(
    ("soft", "hard", "needed", "then"),
    [
        (64, 300, "", "300 300 300"),  # as far as it goes
        (64, 300, "100", "300 300 300"),
        (300, 300, "", "300 300 300"),
    ],
)
def test_a_program_of_ours_raises_its_own_limit(
    soft: int, hard: int, needed: str, then: str
) -> None:
    program = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$0" -c "$1"'
    argv = ["/bin/sh", "-c", program, sys.executable, RAISES.format(needed)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=limit_s())
    assert done.stdout.split() == then.split()


def test_a_process_that_is_not_ours_gets_its_limit_back() -> None:
    with soft_limit(700):
        inside, leave = threading.Event(), threading.Event()

        def other_run() -> None:
            with open_files.raised():
                inside.set()
                leave.wait(limit_s())

        other = threading.Thread(target=other_run)
        with open_files.raised():
            other.start()
            inside.wait(limit_s())
            high = open_files.limits().soft
            assert high == min(open_files.limits().hard, open_files.ENOUGH)
        assert open_files.limits().soft == high  # the other run needs it
        leave.set()
        other.join()
        assert open_files.limits().soft == 700


def test_what_was_changed_meanwhile_by_others_is_theirs() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with soft_limit(700):
        with open_files.raised():
            resource.setrlimit(resource.RLIMIT_NOFILE, (900, hard))
        assert open_files.limits().soft == 900


def test_connections_are_what_is_left_beside_open_files() -> None:
    with soft_limit(700):
        before = open_files.connections()
        more = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
        try:
            assert before - open_files.connections() == 50
            assert before < 700
        finally:
            for file in more:
                os.close(file)


def test_whether_there_is_a_file_left() -> None:
    assert not open_files.none_left()
    with no_files_left():
        assert open_files.none_left()
    assert not open_files.none_left()
