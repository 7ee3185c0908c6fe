"""A locale whose encoding is not UTF-8."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from patience import limit_s


def latin1(folder: Path) -> dict[str, str]:
    """The variables of an Italian site of the nineties, whose locale is made in a folder."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/it_IT").exists():
        pytest.skip("NO TEST OF ANOTHER LOCALE: localedef or its sources are not installed")
    made = folder / "locales"
    made.mkdir(exist_ok=True)
    target = made / "it_IT.ISO-8859-1"
    command = ["localedef", "-i", "it_IT", "-f", "ISO-8859-1", str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=limit_s())
    return {"LC_ALL": "it_IT.ISO-8859-1", "LOCPATH": str(made)}
