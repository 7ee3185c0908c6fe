"""A swarm and its jobs in Python, as a notebook or a script has them: on the standing swarm."""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import domyn_swarm
from domyn_swarm import (
    ChatCompletionJob,
    DomynLLMSwarm,
    DomynLLMSwarmConfig,
    SubmittedJob,
    SwarmJob,
    TemplateJob,
)
from domyn_swarm.errors import ConfigError, JobError, StateError
from domyn_swarm.model import JobHandle
from local_swarms import config
from patience import limit_s, scaled, until

if TYPE_CHECKING:
    from acceptance.conftest import Standing

MANY = 400  # more rows than are answered while one of our commands runs
PROXIES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def swarm(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> DomynLLMSwarm:
    """The standing swarm in this process."""
    monkeypatch.setenv("DOMYN_SWARM_HOME", str(standing.cli.home))
    return DomynLLMSwarm.attach("demo")


def asked_by(client: Any) -> dict[str, Any]:
    return {
        "model": client.model,
        "messages": [{"role": "user", "content": "how do you do"}],
        "max_tokens": 3,
    }


def shown_in_a_notebook(shown: object) -> str:
    """What a notebook's cell shows of a value."""
    from IPython.lib.pretty import pretty

    return pretty(shown)


def test_openais_client_is_ready_to_be_used(
    swarm: DomynLLMSwarm, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = standing.cli.json("endpoint", "demo")
    key = (standing.cli.home / "swarms" / "demo" / "secrets" / "api_key").read_text().strip()
    assert (swarm.endpoint, swarm.api_key) == (told["url"], key)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with swarm.openai() as client:
        assert client.chat.completions.create(**asked_by(swarm)).choices[0].message.content

    async def ask() -> str | None:
        async with swarm.async_openai() as there:
            reply = await there.chat.completions.create(**asked_by(swarm))
            return reply.choices[0].message.content

    assert asyncio.run(ask())
    assert key not in f"{client!r} {swarm!r} {client!s}"


def test_without_openais_package_the_extra_is_named(
    swarm: DomynLLMSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)  # as if it were not installed
    for ask in (swarm.openai, swarm.async_openai):
        with pytest.raises(ConfigError, match=r"openai\(\) needs the package openai") as refused:
            ask()
        assert "pip install 'domyn-swarm[openai]'" in refused.value.hint


def test_a_swarm_that_is_not_up_has_no_endpoint() -> None:
    swarm = DomynLLMSwarm(config())
    for ask in (lambda: swarm.endpoint, lambda: swarm.api_key, swarm.openai):
        with pytest.raises(StateError, match="is not up"):
            ask()


def test_a_submitted_job_can_be_asked_and_waited_for(
    swarm: DomynLLMSwarm, standing: Standing, tmp_path: Path
) -> None:
    job = standing.job("python", 20)
    submitted = swarm.submit_job(
        TemplateJob(prompt="{{ prompt }}", max_tokens=3),
        input_path=job.source,
        output_path=job.target,
        external_id="of-python",
        detach=True,
    )
    assert submitted.wait(progress=False).status == "succeeded"
    again = pickle.loads(pickle.dumps(submitted))
    told = JobHandle.model_validate_json(submitted.model_dump_json())  # as --handle-json has it
    for one in (again, SubmittedJob.of(told), SubmittedJob.attach("of-python")):
        assert (type(one), one) == (SubmittedJob, submitted)
        assert one.status().rows_done == 20
    shown = f"<job {submitted.job_id} (TemplateJob): succeeded, 20/20 rows>"
    assert str(submitted.status()) == shown
    assert shown_in_a_notebook(submitted.status()) == shown
    assert list(again.results()["result"]) == again.results(arrow=True)["result"].to_pylist()
    assert again.report(tmp_path / "page.html").path == tmp_path / "page.html"
    assert "<html" in (tmp_path / "page.html").read_text()
    assert str(submitted) == f"<SubmittedJob '{submitted.job_id}' of swarm 'demo', local>"
    offered = {name for name in dir(submitted) if not name.startswith("_")}
    assert {"wait", "status", "cancel", "results", "report", "job_id"} <= offered
    assert not {"from_orm", "parse_raw", "model_fields_set"} & offered


def test_a_preview_and_a_forecast_keep_what_the_job_then_does_not_ask(
    swarm: DomynLLMSwarm, standing: Standing
) -> None:
    job = standing.job("tried in python", 60)
    asked = TemplateJob(prompt="{{ prompt }}", max_tokens=3)
    paths = {"input_path": job.source, "output_path": job.target}
    first = swarm.preview(asked, rows=2, **paths)
    rows = pq.read_table(job.source)["prompt"].to_pylist()
    assert [one.input["prompt"] for one in first.rows] == rows[:2]
    assert all(one.answer and one.answer["result"] for one in first.rows)
    assert (first.rows_asked, first.estimate.rows) == (2, 58)
    assert shown_in_a_notebook(first) == str(first)
    assert str(first) == "<preview of TemplateJob: 2 rows, 2 of them asked now; 58 of 60 left>"

    async def as_in_a_notebook() -> Any:  # a cell of which has a loop already
        return swarm.forecast(asked, sample=20, **paths)

    ahead = asyncio.run(as_in_a_notebook())
    assert (ahead.rows_asked, ahead.rows_left, ahead.rows_total) == (20, 38, 60)
    [now] = [one for one in ahead.choices if one.replicas == ahead.replicas]
    assert 0 <= now.duration_low_s <= now.duration_s <= now.duration_high_s
    assert "20 rows asked; 38 of 60 left, which take" in str(ahead)
    assert not job.target.exists()
    ended = swarm.submit_job(asked, progress=False, **paths).status()
    assert (ended.rows_done, ended.rows_resumed) == (60, 22)


def test_a_preview_that_is_interrupted_says_what_is_kept(
    swarm: DomynLLMSwarm, standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = standing.job("interrupted preview", 3)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("domyn_swarm.services.jobs.JobService.preview", interrupted)
    with pytest.raises(KeyboardInterrupt, match="answers so far are kept, and no job"):
        swarm.preview(
            TemplateJob(prompt="{{ prompt }}"), input_path=job.source, output_path="o.csv"
        )


def test_a_submitted_job_is_ended_from_python(
    swarm: DomynLLMSwarm, standing: Standing, tmp_path: Path
) -> None:
    job = standing.job("held python", MANY)
    with standing.sim.held():
        submitted = swarm.submit_job(
            ChatCompletionJob(max_concurrency=4),
            input_path=job.source,
            output_path=job.target,
            input_columns="prompt",
            detach=True,
        )
        until(lambda: submitted.status().rows_done)
        assert submitted.wait(timeout_s=scaled(0.1), progress=False).status == "running"
    ended = submitted.cancel()
    assert ended.status == "cancelled"
    with pytest.raises(JobError, match="has not published"):
        submitted.results()
    assert len(submitted.results(partial=True, arrow=True)) == ended.rows_done


SCRIPT = """
import sys
from domyn_swarm import ChatCompletionJob, DomynLLMSwarm

DomynLLMSwarm.attach("demo").submit_job(
    ChatCompletionJob(max_concurrency=4),
    input_path=sys.argv[1],
    output_path=sys.argv[2],
    input_columns="prompt",
)
"""


def test_a_script_that_is_interrupted_ends_its_job_and_says_what_is_kept(
    swarm: DomynLLMSwarm, standing: Standing
) -> None:
    job = standing.job("held script", MANY)
    with standing.sim.held():
        command = [sys.executable, "-c", SCRIPT, str(job.source), str(job.target)]
        script = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

        def begun() -> Any:
            return next(
                (one for one in swarm.snapshot().jobs if one.input == str(job.source)), None
            )

        seen = until(lambda: (one := begun()) and one.rows_done and one)
        script.send_signal(signal.SIGINT)
    _, said = script.communicate(timeout=limit_s())
    assert script.returncode == -signal.SIGINT
    [line] = said.splitlines()
    assert re.match(rf"Interrupted: the job {seen.job_id} has stopped, and its \d+ rows that", line)
    assert SubmittedJob.attach(seen.job_id).status().status == "cancelled"


class Shout(SwarmJob):
    """A class, which is no job."""

    async def transform_item(self, item: Any) -> Any:
        """The item in capitals."""
        return str(item).upper()


def test_mistakes_with_a_swarm_are_named(swarm: DomynLLMSwarm, tmp_path: Path) -> None:
    rows = pa.table({"text": ["a"]})
    for wrong, reason in (
        (lambda: swarm.run(Shout, rows), "Shout is a class"),  # type: ignore[arg-type]
        (lambda: swarm.run(rows, Shout()), "The job comes first"),  # type: ignore[arg-type]
        (
            lambda: swarm.submit_job(Shout, input_path="i", output_path="o"),  # type: ignore[arg-type]
            "Shout is a class",
        ),
        (
            lambda: swarm.submit_job(Shout(), input_path="i", output_path="o", retry=1),  # type: ignore[call-arg]
            "mean 'retries'",
        ),
        (
            lambda: swarm.preview(Shout(), input_path="i", output_path="o", rows=0),
            r"preview\(rows=0\): rows is a number of rows",
        ),
        (
            lambda: swarm.forecast(Shout(), input_path="i", output_path="o", sample=True),
            r"forecast\(sample=True\)",
        ),
        (
            lambda: swarm.forecast(Shout(), input_path="i", output_path="o", retry=1),  # type: ignore[call-arg]
            "mean 'retries'",
        ),
        (lambda: DomynLLMSwarm("config.yaml"), "DomynLLMSwarmConfig.read"),  # type: ignore[arg-type]
        (lambda: DomynLLMSwarm({"model": "m"}), r"DomynLLMSwarmConfig\(\*\*cfg\)"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=reason):
            wrong()
    with pytest.raises(ConfigError, match="cannot be read") as refused:
        DomynLLMSwarmConfig.read(tmp_path / "none.yaml")
    assert refused.value.__suppress_context__
    assert len(refused.traceback) <= 3  # a notebook prints each of them
    named = "domyn_swarm.jobs:CompletionJob"
    found = swarm.run(named, pa.table({"prompt": ["as text"]}), progress=False)
    assert found["result"].to_pylist()[0]


def test_what_a_user_sees_of_the_package_and_a_swarm(swarm: DomynLLMSwarm) -> None:
    assert {"DomynLLMSwarm", "SwarmJob", "TemplateJob", "job"} <= {*dir(domyn_swarm)}
    for name in domyn_swarm.__all__:
        assert getattr(domyn_swarm, name) is not None
    assert repr(swarm) == "<DomynLLMSwarm 'demo': model 'sim-model', local>"
    assert "not up" in repr(DomynLLMSwarm(config()))
