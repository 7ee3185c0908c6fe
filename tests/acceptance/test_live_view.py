"""`top` in a real terminal, over a real swarm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from command_line import PROGRAM
from terminal import Terminal

if TYPE_CHECKING:
    from acceptance.conftest import Standing


def test_it_shows_the_swarm_opens_a_log_and_leaves(standing: Standing) -> None:
    with Terminal([PROGRAM, "top", "demo"], standing.cli.environment) as terminal:
        terminal.until("2 of 2 replicas ready")
        terminal.press("e")
        terminal.until("Back")  # among the keys of the log alone
        terminal.press("\x1b")
        terminal.until("replicas ready")
        terminal.press("q")
        assert terminal.ended() == 0


def test_an_unknown_name_is_an_error_before_the_screen_is_taken(standing: Standing) -> None:
    with Terminal([PROGRAM, "top", "dmeo"], standing.cli.environment) as terminal:
        terminal.until("Did you mean demo?")
        assert terminal.ended() == 3
