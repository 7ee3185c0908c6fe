"""A job in the cells of a real notebook kernel: interrupted, it keeps what it has and goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel

from model_server import Answer, ModelServer
from patience import limit_s, scaled, until

FRAME = """
import pandas as pd
from domyn_swarm.jobs import ChatCompletionJob

frame = pd.DataFrame({"prompt": [f"p{n}" for n in range(300)]})
one = ChatCompletionJob(input_columns=["prompt"], output_columns=["answer"], max_concurrency=4)
"""
WHERE = 'frame, endpoint=URL, model="m", api_key="the-key", progress=False'
CELLS = {
    f"out = one.run({WHERE})": "KeyboardInterrupt",
    f"out = await one.arun({WHERE})": "CancelledError",  # so the kernel ends what is awaited
}


class Notebook:
    """A kernel, and what its cells say."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager = manager
        self._client = client
        self.printed = ""

    def run(self, cell: str, meanwhile: Callable[[], None] | None = None) -> dict[str, Any]:
        """The reply to a cell; `meanwhile` happens once it has begun."""
        number = self._client.execute(cell, stop_on_error=False)  # or what comes next is aborted
        if meanwhile is not None:
            meanwhile()
        reply = self._client.get_shell_msg(timeout=limit_s())
        while reply["parent_header"]["msg_id"] != number:
            reply = self._client.get_shell_msg(timeout=limit_s())
        return dict(reply["content"])

    def shown(self, cell: str) -> list[dict[str, Any]]:
        """What a cell shows: each output with what has replaced it since, and what it prints."""
        outputs: list[dict[str, Any]] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] in ("display_data", "update_display_data"):
                mark = content["transient"].get("display_id")
                outputs[:] = [one for one in outputs if mark is None or one.get("id") != mark]
                outputs.append({"id": mark, **content["data"]})
            elif message["msg_type"] in ("stream", "error"):
                outputs.append(content)

        reply = self._client.execute_interactive(cell, timeout=limit_s(), output_hook=hear)
        assert reply["content"]["status"] == "ok", outputs
        return outputs

    def value(self, expression: str) -> str:
        """What an expression is, as Python writes it."""
        asked = {"value": expression}
        reply = self._client.execute(
            "", user_expressions=asked, reply=True, timeout=limit_s(), silent=True
        )
        return str(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    folders = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    env = {**os.environ, **{name: str(tmp_path / name.lower()) for name in folders}}
    manager, client = start_new_kernel(startup_timeout=limit_s(), env=env, cwd=str(tmp_path))
    try:
        yield Notebook(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(("cell", "ended_by"), CELLS.items(), ids=["run", "arun"])
def test_an_interrupted_cell_keeps_its_rows_and_goes_on_when_run_again(
    notebook: Notebook, server: ModelServer, cell: str, ended_by: str
) -> None:
    server.behave = lambda _prompt, _nth: Answer(delay_s=scaled(0.03))
    server.answers_at_most = 20
    assert notebook.run(f"URL = {server.url!r}\n{FRAME}")["status"] == "ok"

    def interrupt() -> None:
        until(lambda: server.answered.total() == 20)
        notebook.manager.interrupt_kernel()
        server.answers_at_most = None

    reply = notebook.run(cell, interrupt)
    assert (reply["status"], reply["ename"]) == ("error", ended_by)
    assert 20 <= sum(server.answered.values()) < 300
    server.behave = lambda _prompt, _nth: Answer()
    assert notebook.run(cell)["status"] == "ok"
    answers = " ".join(f"P{n}" for n in range(300))
    assert notebook.value("' '.join(out['answer'])") == repr(answers)
    assert set(server.asked.values()) == {1}


def test_a_cell_shows_a_bar_and_prints_nothing(notebook: Notebook, server: ModelServer) -> None:
    server.behave = lambda prompt, _nth: Answer(status=400 if prompt == "p7" else 200)
    assert notebook.run(f"URL = {server.url!r}\n{FRAME}")["status"] == "ok"
    where = WHERE.replace("progress=False", "progress=True")
    for cell in (f"out = one.run({where})", f"out = await one.arun({where})"):
        [bar] = notebook.shown(cell)
        assert bar["text/plain"].startswith("ChatCompletionJob: 300/300 rows")
        assert ", 1 failed" in bar["text/plain"]
        assert bar["text/html"].startswith('<progress value="300" max="300"')
    assert notebook.shown(f"out = one.run({WHERE})") == []
