"""What the site shows of other parts of the repository: the changelog, the examples with their
files, and the picture of the live view that its test compares with.

A hook of MkDocs, as `reference`: the pages are added to a build and written nowhere.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_LANGUAGES = {
    ".py": "python",
    ".sh": "bash",
    ".yaml": "yaml",
    ".jsonl": "json",
    ".csv": "text",
    ".txt": "text",
}
_LIVE_VIEW = "test_a_large_swarm_with_two_jobs_looks_as_it_was_looked_at[80].raw"
_SNAPSHOTS = ROOT / "tests/cli/__snapshots__/test_top"
_LINES = 100  # of a file that is shown; a longer one is cut


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page of each example into the navigation; called by MkDocs once a build."""
    [listed] = [one["Examples"] for one in config.nav or () if "Examples" in one]
    listed += [f"examples/{folder.name}.md" for folder in _examples()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; called by MkDocs once a build."""
    files.append(File.generated(config, "reference/changelog.md", content=changelog_page()))
    files.append(File.generated(config, "pictures/top.svg", content=live_view()))
    files.append(File.generated(config, "examples/index.md", content=examples_page()))
    for folder in _examples():
        page = example_page(folder)
        files.append(File.generated(config, f"examples/{folder.name}.md", content=page))
    return files


def _examples() -> list[Path]:
    return sorted(path.parent for path in EXAMPLES.glob("*/README.md"))


def changelog_page() -> str:
    """What changed, by version."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](../")


def live_view() -> str:
    """The picture that the live view's test compares with; its fonts are those of who looks."""
    drawn = (_SNAPSHOTS / _LIVE_VIEW).read_text(encoding="utf-8")
    return re.sub(r"@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL)


def examples_page() -> str:
    """The list of examples, with links to their pages."""
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    listed = re.sub(r"\]\(([\w-]+)\)", r"](\1.md)", text)
    return "\n".join(
        [
            listed,
            "`swarm.yaml`, in the folder of the examples:",
            "",
            *_shown(EXAMPLES / "swarm.yaml"),
        ]
    )


def example_page(folder: Path) -> str:
    """An example: its README, and its files as they are."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    linked = readme.replace("](../../docs/", "](../")
    for path in folder.iterdir():
        linked = linked.replace(f"]({path.name})", "](#files)")
    lines = [linked, "## Files", ""]
    for path in _tracked(folder):
        if path.suffix == ".ipynb":
            lines += [f"`{path.relative_to(EXAMPLES)}`", "", *_cells(path)]
        if path.suffix in _LANGUAGES:
            lines += [f"`{path.relative_to(EXAMPLES)}`", "", *_shown(path)]
    return "\n".join(lines)


def _cells(notebook: Path) -> list[str]:
    """What a notebook holds, without what it printed."""
    lines = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        lines += [text, ""] if cell["cell_type"] == "markdown" else ["```python", text, "```", ""]
    return lines


def _shown(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8").splitlines()
    cut = [f"… {len(text) - _LINES} more lines"] if len(text) > _LINES else []
    return [f"````{_LANGUAGES[path.suffix]}", *text[:_LINES], *cut, "````", ""]


def _tracked(folder: Path) -> list[Path]:
    """The files of a folder that are the repository's, not what running the example has left."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:  # a source distribution
        return sorted(path for path in folder.iterdir() if path.is_file())
    return [folder / name for name in listing.stdout.splitlines() if (folder / name).is_file()]
