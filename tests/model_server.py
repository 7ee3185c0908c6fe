"""A real HTTP server that a test programs, and a way to run jobs against it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from domyn_swarm.jobs.worker_spec import JobSpec
from domyn_swarm.services.requests import JobRequest
from patience import limit_s

KEY = "the-key"


@dataclass
class Answer:
    """What the server does with one request."""

    text: str | None = None  # None: the prompt, upper-case
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    reset: bool = False
    dies: bool = False  # the server, which is back at once
    body: Any = None  # instead of a chat completion


class ModelServer:
    """An OpenAI-shaped server in a thread. `behave(prompt, nth)` decides each answer."""

    def __init__(self) -> None:
        self.behave: Callable[[str, int], Answer] = lambda _prompt, _nth: Answer()
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = 0
        self.answers_at_most: int | None = None  # further requests wait until it is changed
        self.key = KEY
        self.serving = True  # False: a router that knows of no replica
        self.deaths = 0
        self._at_once = 0
        self._answering: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _call(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s())  # type: ignore[arg-type]

    def start(self) -> None:
        self._call(self._start())

    def stop(self) -> None:
        self._call(self._stop())

    def end(self) -> None:
        """Stop without waiting for what is still being answered."""
        self._call(self._abandon())
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/{path:.*}", self._post)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, backlog=2048).start()
        self.port = self._runner.addresses[0][1]

    async def _abandon(self) -> None:
        for one in self._answering:
            one.cancel()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _restart(self) -> None:
        await self._abandon()
        await self._stop()
        await self._start()

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m"}] * self.serving})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no key"}}, status=401)
        body = await request.json()
        prompt = prompt_of(body)
        self.bodies.append(body)
        self.asked[prompt] += 1
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(request, prompt, self.behave(prompt, self.asked[prompt]))
        finally:
            self._at_once -= 1
            self._answering.discard(task)

    def _held_back(self) -> bool:
        return self.answers_at_most is not None and self.answered.total() >= self.answers_at_most

    async def _answer(self, request: web.Request, prompt: str, answer: Answer) -> web.Response:
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        while self._held_back():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.01)
        if answer.reset:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if answer.dies:
            self.deaths += 1
            self._restarting = self._loop.create_task(self._restart())
            await asyncio.Event().wait()
        if answer.status != 200:
            document = answer.body or {"error": {"message": f"status {answer.status} for {prompt}"}}
            return web.json_response(document, status=answer.status, headers=answer.headers)
        text = prompt.upper() if answer.text is None else answer.text
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(text)}
        self.answered[prompt] += 1
        answers = {"choices": [choice]}
        if request.path.endswith("/embeddings"):
            answers = {"data": [{"index": 0, "embedding": [0.5]}]}
        document = {**answers, "usage": usage} if answer.body is None else answer.body
        body = json.dumps(document).encode()
        return web.Response(body=body, content_type="application/json", headers=answer.headers)


def prompt_of(body: dict[str, Any]) -> str:
    """What is asked: the last message, the prompt, or the texts to embed."""
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body["prompt"] if "prompt" in body else "|".join(body["input"]))


@pytest.fixture
def server() -> Iterator[ModelServer]:
    served = ModelServer()
    yield served
    served.end()


@pytest.fixture
def answer() -> type[Answer]:
    return Answer


@dataclass
class Bench:
    """Writes inputs, makes specs and runs jobs in this process."""

    folder: Path
    server: ModelServer

    def write(self, rows: int, name: str = "in.parquet", start: int = 0) -> Path:
        path = self.folder / name
        numbers = range(start, start + rows)
        columns = {"n": list(numbers), "prompt": [f"p{number}" for number in numbers]}
        pq.write_table(pa.table(columns), path)
        return path

    def spec(self, **changes: Any) -> JobSpec:
        key = self.folder / "key"
        key.write_text(KEY)
        fields: dict[str, Any] = {
            "job_id": "j1",
            "name": "test",
            "job": "domyn_swarm.jobs:ChatCompletionJob",
            "model": "m",
            "endpoint_url": self.server.url,
            "api_key_file": str(key),
            "input": str(self.folder / "in.parquet"),
            "output": str(self.folder / "out.parquet"),
            "input_columns": ("prompt",),
            "output_columns": ("answer",),
            "checkpoint_root": str(self.folder / "checkpoints"),
            "min_version": "0.0.0",
        }
        return JobSpec.model_validate({**fields, **changes})

    def request(self, **changes: Any) -> JobRequest:
        """The same as a person submits it, with an id of their own."""
        fields: dict[str, Any] = {
            "endpoint": self.server.url,
            "model": "m",
            "input": str(self.folder / "in.parquet"),
            "output": str(self.folder / "out.parquet"),
            "input_columns": ("prompt",),
            "output_columns": ("answer",),
            "retries": 0,
            "external_id": "mine",
        }
        return JobRequest.model_validate({**fields, **changes})

    def job_folder(self, spec: JobSpec) -> Path:
        folder = self.folder / "job"
        folder.mkdir(exist_ok=True)
        (folder / "job.json").write_text(spec.model_dump_json())
        return folder

    @property
    def checkpoint(self) -> Path:
        """The folder of the one job that kept results."""
        [note] = (self.folder / "checkpoints").glob("*/*/job.json")
        return note.parent

    def output(self, name: str = "out.parquet") -> list[dict[str, Any]]:
        return pq.read_table(self.folder / name).to_pylist()


@pytest.fixture
def bench(tmp_path: Path, server: ModelServer) -> Bench:
    return Bench(tmp_path, server)
