"""Headless Chromium over a page that is a file: what it makes of the page, or a picture of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from patience import limit_s

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="Chromium is not installed: `make monitoring-packages` where there is apt",
)


def browse(*flags: str, page: str | Path, profile: Path) -> str:
    """What headless Chromium says of a page."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [*command, f"--user-data-dir={profile}", *flags, f"file://{page}"],
        capture_output=True,
        text=True,
        timeout=limit_s(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
