"""The pages that the site shows as pictures: tests see them anew, and say when they have changed.

Words and numbers differ from run to run; headings, columns and plots are what has to be the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_FOLDER = Path(__file__).parents[1] / "docs/pictures"
_PARTS = re.compile(r'<h2.*?</h2>|<th[ >].*?</th>|<dt>.*?</dt>|aria-label="[^",]*', re.DOTALL)


def is_on_the_site(name: str, page: str) -> None:
    """Assert that the picture of that name has the parts of a page as it is seen now.

    `make pictures` has it written there first.
    """
    picture = _FOLDER / f"{name}.html"
    if os.environ.get("DOMYN_SWARM_PICTURES"):
        picture.write_text(page, encoding="utf-8")
    shown = picture.read_text(encoding="utf-8")
    assert _parts(page)
    assert _parts(page) == _parts(shown), f"{picture.name} is no longer true: `make pictures`"


def _parts(page: str) -> list[str]:
    """Each one once: a swarm that is older has more plots of a kind. Without the remarks beside
    headings, such as how many jobs are left out.
    """
    plain = re.sub(r'<span class="dim">.*?</span>', "", page, flags=re.DOTALL)
    return list(dict.fromkeys(re.sub(r"\d+", "0", part) for part in _PARTS.findall(plain)))
