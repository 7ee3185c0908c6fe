"""The page on Slurm: its commands, typed on the real cluster."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from command_line import CommandLine
from domyn_swarm.state import SwarmStore
from slurm.cluster import SlurmCluster
from slurm.swarms import jobs_of
from typed_pages import type_out

PAGE = Path(__file__).parents[2] / "docs/slurm.md"

# What the test cluster has in place of the page's site.
SITE = {
    "model: Qwen/Qwen3-32B": "model: Qwen/Qwen3-32B\nengine: sim",  # no GPU, no vLLM
    "partition: gpu": "partition: main",
    "{partition: cpu, mem: 8G": "{partition: main, mem: 8G",
    "/shared/venvs/vllm": sys.prefix,
}

# What the page tells of in its text and does not tell to type, with the reason.
NOT_TYPED = {
    "up --timeout": "bounds waiting, and there is none: the other tests of the cluster bring up so",
    "job status": "names where a reason is shown: see test_jobs.py",
    "job list": "likewise",
    "--stop-after": "of campaigns: see acceptance/test_how_to.py",
    "--no-continue": "see test_job_ends.py",
    "--time-min": "what Slurm is given for a range of times: see test_waiting.py",
    "job submit --down-after": "ends the swarm that the page goes on with: see test_layouts.py",
    "--placement step|job": "either is what its line of the page gets anyway: see test_jobs.py",
    "job submit-script": "of proxies: see acceptance/test_proxies.py",
    "--gres=gpu:N": "sbatch's own",
    "--gres": "sbatch's own",
    "--export=NONE": "sbatch's own",
    "--export=HF_TOKEN": "sbatch's own",
    "--exclusive": "sbatch's own",
    "--requeue": "sbatch's own",
    "--nnodes": "vLLM's own",
    "--exclude": "sbatch's own",
    "--dependency=after:…": "sbatch's own",
    "job requeued in held state": "Slurm's words",
    "--gpus": "of the rehearsal, and the cluster's GPUs are pretended: see test_rehearsal.py",
    "--timeout": "of the rehearsal: see test_rehearsal.py",
    "job comments": "a line of the rehearsal",
    "--json": "see acceptance/test_printed.py",
}


@pytest.fixture
def cli(slurm: SlurmCluster, swarm_home: Path) -> Iterator[CommandLine]:
    line = CommandLine(swarm_home)
    yield line
    line.clean_up()


def commands(text: str) -> set[str]:
    """What a page says in its running text of commands and flags."""
    running = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    spans = (span.removeprefix("domyn-swarm ") for span in re.findall(r"`([^`\n]+)`", running))
    known = r"(doctor|plan|up|status|scale|down|job|-\S+)( |$)"
    return {span for span in spans if re.match(known, span)}


def test_the_page_works_as_it_stands(cli: CommandLine, slurm: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    said = type_out(PAGE, folder, cli.environment, SITE)
    assert jobs_of(slurm, "my-swarm") == {}
    for name in ("answers", "later", "here"):
        answers = pq.read_table(folder / f"{name}.parquet")
        assert answers.column("id").to_pylist() == ["1", "2", "3"]
        assert answers.column("result").null_count == 0
    ran = {Path(str(job.output)).stem: job.handle for job in SwarmStore.open().jobs()}
    places = {name: (one.platform, one.step) for name, one in ran.items() if one is not None}
    assert places == {"answers": ("slurm", "0"), "later": ("slurm", None), "here": ("local", None)}
    traced = [line for line in said.splitlines() if line.startswith("+ domyn-swarm ")]
    typed = [set(shlex.split(line)) for line in traced]
    told = commands(PAGE.read_text(encoding="utf-8"))
    untyped = {one for one in told if not any(set(one.split()) <= words for words in typed)}
    assert untyped == set(NOT_TYPED)
