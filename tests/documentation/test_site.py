"""The documentation site: it builds with strict links, and its reference is the code's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from browser import browse, needs_chromium

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_it_builds_with_strict_links(site: Path) -> None:
    assert (site / "index.html").is_file()
    assert (site / "how-to" / "resume-and-retry" / "index.html").is_file()


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("options", ("domyn-swarm job submit", "--max-concurrency", "domyn-swarm down")),
        ("keys", ("DomynLLMSwarmConfig", "wait_endpoint_s", "drain_before_end_s", "1200")),
        ("errors", ("CheckpointBusy", "Another driver holds this job", "SwarmNotFound")),
        ("causes", ("llamacpp", "the GPU ran out of memory", "the model was not found")),
        ("metrics", ("domyn_swarm_job_rows_done_total", "outcome", "gen_ai_client_token_usage")),
        ("python", (".async_openai()", "output_cols", "timeout_retries", "context_turns")),
        ("python", ("Columns that hold parameters of the request", "on_row_error", "verdicts")),
        ("files", ("swarm.db", "secrets/api_key", "serving/endpoint.json", "progress.json")),
    ],
)
def test_the_reference_is_made_from_the_code(site: Path, page: str, what: tuple[str, ...]) -> None:
    text = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    assert [one for one in what if one not in text] == []


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="https?://', pages)
    drawn = (site / "pictures" / "top.svg").read_text(encoding="utf-8")
    assert "restarting" in drawn
    assert "url(" not in re.sub(r"url\(#", "", drawn)


def test_examples_and_changes_are_pages_too(site: Path) -> None:
    index = (site / "examples" / "index.html").read_text(encoding="utf-8")
    for folder in (path.parent.name for path in ROOT.glob("examples/*/README.md")):
        assert f'href="{folder}/"' in index, "examples/README.md does not list it"
        assert (site / "examples" / folder / "index.html").is_file()
    path = (site / "examples" / "first-path" / "index.html").read_text(encoding="utf-8")
    assert (ROOT / "examples/first-path/questions.csv").read_text().splitlines()[1] in path
    changes = (site / "reference" / "changelog" / "index.html").read_text(encoding="utf-8")
    assert "Unreleased" in changes


MEASURED = """<script>
const wide = [...document.querySelectorAll("pre > code, .md-content img")].filter(
    (one) => one.scrollWidth > one.parentElement.clientWidth + 1);
document.title = "wide: " + wide.map((one) => one.textContent.slice(0, 60) || one.src).join(" | ");
</script>"""


@needs_chromium
@pytest.mark.parametrize("page", ["", "commands", "slurm", "live-view", "reference/options"])
def test_no_code_and_no_picture_is_wider_than_its_page(
    site: Path, page: str, tmp_path: Path
) -> None:
    folder = site / page
    text = (folder / "index.html").read_text(encoding="utf-8")
    measured = folder / "measured.html"
    measured.write_text(text.replace("</body>", f"{MEASURED}</body>"), encoding="utf-8")
    flags = ("--window-size=1280,900", "--dump-dom")
    dom = browse(*flags, page=measured, profile=tmp_path / "profile")
    assert "<title>wide: </title>" in dom, re.findall(r"<title>.*?</title>", dom, re.S)
