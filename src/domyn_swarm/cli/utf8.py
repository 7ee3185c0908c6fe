"""The command line in UTF-8, whatever the locale: names of files and prompts are the same on the
nodes, whose locale may be another, and everything can be printed.
"""

from __future__ import annotations

import codecs
import locale
import os
import sys
from contextlib import suppress
from typing import TextIO

_VARIABLE = "PYTHONUTF8"
_ANYTHING = {"utf-8", "ascii"}  # a terminal of the locale C shows UTF-8 as a rule


def ensure() -> None:
    """Begin this program again in Python's UTF-8 mode, which can be chosen at its start alone.

    Terminals of a locale with another encoding are written to in that one.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.environ[_VARIABLE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - this program
    if sys.flags.utf8_mode:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream.isatty():
                _in_the_terminals(stream)


def _in_the_terminals(stream: TextIO) -> None:
    with suppress(locale.Error, LookupError, AttributeError):
        locale.setlocale(locale.LC_CTYPE, "")
        encoding = codecs.lookup(locale.nl_langinfo(locale.CODESET)).name
        if encoding not in _ANYTHING:
            stream.reconfigure(encoding=encoding, errors="replace")  # type: ignore[attr-defined]
