"""Every block of Python in the documentation runs as it stands, against a swarm.

The blocks of a page are one script, in the page's order. Afterwards every job that it defines is
asked two rows, so that what a block only declares is tried as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from patience import limit_s

if TYPE_CHECKING:
    from acceptance.conftest import Standing

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(?P<language>[\w+-]*)(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.M | re.S)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/**/*.md")])

BEFORE = """
ENDPOINT, MODEL = {url!r}, "sim-model"
"""
# What a page takes as given, in its words: a swarm, and a job that has ended.
GIVEN = {
    "outputs": """
from domyn_swarm import DomynLLMSwarm
swarm = DomynLLMSwarm.attach("demo")
job_id = swarm.submit_job(
    "domyn_swarm.jobs:CompletionJob", input_path="in.parquet", output_path="done.parquet",
    external_id="nightly-run", input_columns=("text",),
).job_id
"""
}
AFTER = """
def _try_all(found):
    import pyarrow as pa
    from domyn_swarm import SwarmJob
    jobs = [one for one in found if isinstance(one, SwarmJob)]
    jobs += [
        one() for one in found
        if isinstance(one, type) and issubclass(one, SwarmJob) and one.__module__ == "__main__"
    ]
    for one in jobs:
        rows = pa.table({name: ["some text", "other text"] for name in one.input_columns})
        out = one.run(rows, endpoint=ENDPOINT, model=MODEL, progress=False, checkpoint=False)
        assert "_error" not in out.column_names, (one.label, out["_error"].to_pylist())
        print("tried", one.label)


_try_all(list(globals().values()))
"""


def python_of(page: Path) -> list[str]:
    """The untitled blocks: those with a title are files, which the how-to test writes and uses."""
    found = _BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [
        one["text"] for one in found if one["language"] == "python" and "title=" not in one["info"]
    ]


WITH_PYTHON = [page for page in PAGES if python_of(page)]


def test_no_python_hides_behind_another_name() -> None:
    for page in PAGES:
        for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            assert block["language"] not in ("py", "python3", "pycon"), (page, block["text"])


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(page: Path, standing: Standing, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = standing.cli.json("endpoint", "demo")
    key = (standing.cli.home / "swarms" / "demo" / "secrets" / "api_key").read_text().strip()
    texts = [f"{page.stem}: text {number}" for number in range(3)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    config = {"name": "of-a-page", "model": "sim-model", "engine": "sim", "backend": "local"}
    (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    parts = [BEFORE.format(url=info["url"]), GIVEN.get(page.stem, ""), *python_of(page), AFTER]
    script = tmp_path / "page.py"
    script.write_text("\n".join(parts), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**standing.cli.environment, "DOMYN_SWARM_API_TOKEN": key},
        capture_output=True,
        text=True,
        timeout=2 * limit_s(),
        check=False,
    )
    standing.cli("down", "of-a-page")  # which a page may leave up
    assert done.returncode == 0, done.stdout + done.stderr
    declared = len(re.findall(r"^class \w+\(SwarmJob\)|^@job", script.read_text(), re.M))
    assert done.stdout.count("tried ") >= declared
