"""Whatever a configuration holds reaches the process unchanged: a real bash, a real sbatch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.scripts import BatchScript, sbatch_word
from domyn_swarm.errors import ConfigError
from patience import limit_s
from slurm.cluster import SlurmCluster

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
NAMES = st.from_regex(r"ODD_[A-Z0-9_]{1,8}", fullmatch=True)
TELL = """
import json, os, sys
odd = {name: value for name, value in os.environ.items() if name.startswith("ODD_")}
print(json.dumps({"argv": sys.argv[1:], "env": odd}))
"""


@settings(max_examples=60)
@given(words=st.lists(TEXT, max_size=4), env=st.dictionaries(NAMES, TEXT, max_size=4))
def test_words_and_environment_arrive_unchanged(words: list[str], env: dict[str, str]) -> None:
    script = BatchScript(
        name="n",
        comment="c",
        output=Path("/dev/null"),
        command=[sys.executable, "-c", TELL, *words],
        env=env,
    )
    text = script.render("batch.sh.j2")
    done = subprocess.run(["bash", "-c", text], capture_output=True, check=True, timeout=limit_s())
    assert json.loads(done.stdout) == {"argv": words, "env": env}


@settings(max_examples=40)
@given(words=st.lists(TEXT, max_size=4), env=st.dictionaries(NAMES, TEXT, max_size=4))
def test_they_arrive_unchanged_in_a_step_too(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], env: dict[str, str]
) -> None:
    log = tmp_path_factory.mktemp("a 'folder'") / "$(x) out.log"
    command = [sys.executable, "-c", TELL, *words]
    step = BatchScript(name="n", comment="", output=log, command=command, env=env)
    subprocess.run(["bash", "-c", step.render("step.sh.j2")], check=True, timeout=limit_s())
    assert json.loads(log.read_text()) == {"argv": words, "env": env}


@pytest.mark.parametrize(
    "odd", ["a b", "it's", 'say "hi"', "back\\slash", "$HOME `id` $(id)", "#x;&|"]
)
def test_options_arrive_unchanged(slurm: SlurmCluster, tmp_path: Path, odd: str) -> None:
    path = tmp_path / "job.sh"
    script = BatchScript(
        name="quoted",
        comment=odd,
        output=tmp_path / "a folder" / "out.log",
        command=["sleep", "20"],
        options={"time": "1"},
    )
    path.write_text(script.render("batch.sh.j2"))
    job = Slurm().submit(path)
    assert Slurm().jobs([job])[job].comment == odd
    slurm.run("scancel", job)


def test_what_no_option_can_hold_is_refused() -> None:
    for text in ("two\nlines", "tab\there", "\x1b[0m"):
        with pytest.raises(ConfigError, match="line break or a control character"):
            sbatch_word("comment", text)


def test_modules_and_preamble_come_before_the_command(tmp_path: Path) -> None:
    script = BatchScript(
        name="n",
        comment="c",
        output=tmp_path / "out",
        command=["true"],
        flags=["--requeue"],
        preamble=["--constraint=a100", "#SBATCH --exclusive"],
        modules=["cuda/12.4", "odd name"],
        options={"account": None, "array": "0-3"},
    )
    lines = script.render("batch.sh.j2").splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0-3" in lines
    assert "#SBATCH --constraint=a100" in lines
    assert "#SBATCH --exclusive" in lines
    assert not any("account" in line for line in lines)
    loaded = [line.partition(" 2> ")[0] for line in lines if line.startswith("module load")]
    assert loaded == ["module load cuda/12.4", "module load 'odd name'"]
    assert lines[-1] == "exec true"


def test_a_sites_own_template_is_used_and_its_mistakes_are_told(tmp_path: Path) -> None:
    template = tmp_path / "site.j2"
    script = BatchScript(name="n", comment="c", output=tmp_path / "out", command=["a b", "c"])
    template.write_text(
        "#!/bin/bash\nsource /site/setup\nexec {{ command | map('quote') | join(' ') }}\n"
    )
    assert script.render("batch.sh.j2", template).endswith("exec 'a b' c\n")
    template.write_text("exec {{ comand }}\n")
    with pytest.raises(ConfigError, match="'comand' is undefined"):
        script.render("batch.sh.j2", template)


def test_the_documentation_shows_the_built_in_template() -> None:
    root = Path(__file__).parents[2]
    shown = (root / "docs/slurm.md").read_text().partition("```jinja\n")[2].partition("```")[0]
    assert shown == (root / "src/domyn_swarm/backends/slurm/templates/batch.sh.j2").read_text()
