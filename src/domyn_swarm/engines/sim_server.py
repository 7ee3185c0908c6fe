"""The simulator's server: OpenAI-compatible, deterministic, with configured faults.

It serves rehearsals of configurations and tests: its answers mean nothing. The API key is read from
`SIM_API_KEY`; without it every request is allowed. On SIGTERM requests in flight are finished.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from domyn_swarm.engines import sim_openai
from domyn_swarm.engines.sim_faults import Faults, Received
from domyn_swarm.engines.sim_nodes import Nodes, follow
from domyn_swarm.engines.sim_openai import BadRequest, ModelTokens, Question
from domyn_swarm.engines.sim_options import ErrorRule, SimOptions, read_options
from domyn_swarm.engines.sim_pace import ByModel, ByRate, Figure, Pace

_DRAIN_S = 60.0
_HELD_POLL_S = 0.05
_KEY = web.AppKey("key", str)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Simulator:
    """State and behaviour of one simulated server."""

    def __init__(self, model: str, options: SimOptions, others: int, replica: int) -> None:
        """Raises OSError if the record cannot be written."""
        self._model = model
        self._options = options
        self._faults = Faults(options)
        self._pace: Pace = ByRate(options)
        self._tokens: ModelTokens | None = None
        if (vllm := options.vllm) is not None:
            self._pace = ByModel(vllm, options.slots, replica)
            self._tokens = ModelTokens(vllm.characters_per_token, vllm.output_tokens)
        self._slots = asyncio.Semaphore(self._pace.slots or sys.maxsize)
        self._ready_at = time.monotonic() + options.start_s
        self.nodes = Nodes(others)
        self._running = 0
        self._waiting = 0
        self._answers = 0
        self._succeeded = 0

    # -- routes ----------------------------------------------------------------------------------

    async def health(self, _request: web.Request) -> web.Response:
        """GET /health: 200 once the server has started."""
        await self._busy_for(self._options.health_latency_s)
        return web.Response(status=200 if self._ready else 503)

    async def models(self, _request: web.Request) -> web.Response:
        """GET /v1/models: the one model."""
        model = {"id": self._model, "object": "model", "created": 0, "owned_by": "simulator"}
        return web.json_response({"object": "list", "data": [model]})

    async def metrics(self, _request: web.Request) -> web.Response:
        """GET /metrics: gauges and counters under vLLM's names; 404 if they are disabled."""
        if not self._options.metrics:
            return web.Response(status=404)
        await self._busy_for(self._options.metrics_latency_s)
        figures = [
            *self._pace.figures(self._running, self._waiting),
            Figure("vllm:request_success_total", "counter", self._succeeded),
        ]
        label = json.dumps(self._model)
        lines = [
            f"# TYPE {name} {kind}\n{name}{{model_name={label}}} {float(value)}\n"
            for name, kind, value in figures
        ]
        return web.Response(text="".join(lines))

    async def _busy_for(self, seconds: float) -> None:
        if seconds and self._running:
            await asyncio.sleep(seconds)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._complete(request, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._complete(request, chat=False)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        body = await _body(request)
        texts = sim_openai.texts(body)
        if self._tokens is not None:
            self._refuse_too_long(max(map(self._tokens.of, texts)), 0)

        async def answer() -> web.Response:
            reply = sim_openai.embeddings(texts, self._model, self._tokens)
            await self._pace.read(texts, reply["usage"]["prompt_tokens"])
            return web.json_response(reply)

        return await self._serve(request, Received(request.path, body, "\n".join(texts)), answer)

    async def others(self, request: web.Request) -> web.StreamResponse:
        """POST to any other path: an answer without content."""
        body = await _body(request)

        async def answer() -> web.Response:
            return web.json_response(sim_openai.nothing(self._model))

        prompt = json.dumps(body, ensure_ascii=False)
        return await self._serve(request, Received(request.path, body, prompt), answer)

    async def _complete(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await _body(request)
        asked = sim_openai.question(body, chat=chat, tokens=self._tokens)
        self._refuse_too_long(asked.prompt_tokens, asked.answer_tokens)

        async def answer() -> web.StreamResponse:
            self._answers += 1
            envelope = {
                "id": f"sim-{self._answers}",
                "created": int(time.time()),
                "model": self._model,
            }
            if asked.stream:
                return await self._stream(request, asked, envelope)
            await self._pace.write(asked)
            return web.json_response(asked.reply(envelope))

        return await self._serve(request, Received(request.path, body, asked.prompt), answer)

    def _refuse_too_long(self, read: int, write: int) -> None:
        most = self._pace.most_tokens
        if most is not None and read + write > most:
            raise BadRequest(
                f"This model's maximum context length is {most} tokens (vllm.kv_tokens). However, "
                f"the prompt has {read} and its answer {write}."
            )

    async def _stream(
        self, request: web.Request, asked: Question, envelope: dict[str, Any]
    ) -> web.StreamResponse:
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        async with aclosing(self._pace.pieces(asked)) as pieces:
            async for piece in pieces:
                end = asked.finish_reason if piece.last else None
                await _event(stream, asked.chunk(envelope, piece.choice, piece.text, end))
        if asked.stream_usage:
            await _event(stream, asked.usage_chunk(envelope))
        await stream.write(b"data: [DONE]\n\n")
        await stream.write_eof()
        return stream

    # -- serving ---------------------------------------------------------------------------------

    @property
    def _ready(self) -> bool:
        return self.nodes.complete and time.monotonic() >= self._ready_at

    async def _serve(
        self,
        request: web.Request,
        received: Received,
        answer: Callable[[], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if not self._ready:
            return _error(503, "starting")
        prompt, model = received.prompt, received.body.get("model")
        if model != self._model:
            return _error(404, f"The model `{model}` does not exist.")
        frozen = self._faults.arrive(prompt)
        status = None
        try:
            async with self._slot():
                if frozen:
                    await asyncio.Event().wait()
                await asyncio.sleep(self._latency_s())
                rule = self._faults.rule(prompt)
                if rule is not None and rule.crash:
                    self._faults.record(received, None)
                    self._faults.crash()
                if rule is not None and rule.held_by is not None:
                    await _released(Path(rule.held_by))
                    rule = None
                reply = await answer() if rule is None else await _fault(rule, request)
            if rule is None or not rule.reset:
                status = reply.status
            self._succeeded += status == 200
            return reply
        finally:
            self._faults.record(received, status)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._slots.release()

    def _latency_s(self) -> float:
        sigma = self._options.latency_sigma
        return self._options.latency_s * (math.exp(random.gauss(0, sigma)) if sigma else 1.0)

    async def drained(self) -> None:
        """Return when no request is in flight, or after `_DRAIN_S`."""
        deadline = time.monotonic() + _DRAIN_S
        while (self._running or self._waiting) and time.monotonic() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.02)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise BadRequest("the body is not a JSON object")
    return body


async def _released(file: Path) -> None:
    while file.exists():  # noqa: ASYNC110, ASYNC240 - a local file, deleted by a test
        await asyncio.sleep(_HELD_POLL_S)


async def _fault(rule: ErrorRule, request: web.Request) -> web.Response:
    if rule.hang:
        await asyncio.Event().wait()
    if rule.reset and request.transport is not None:
        request.transport.abort()
    headers = {} if rule.retry_after_s is None else {"retry-after": f"{rule.retry_after_s:g}"}
    return _error(rule.status, "simulated error", headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    document = {"error": {"message": message, "type": "simulated", "code": status}}
    return web.json_response(document, status=status, headers=headers)


async def _event(stream: web.StreamResponse, document: dict[str, Any]) -> None:
    await stream.write(f"data: {json.dumps(document)}\n\n".encode())


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Require the key for every path but /health; answer 400 to an invalid request."""
    key = request.app[_KEY]
    given = request.headers.get("authorization", "")
    allowed = hmac.compare_digest(given.encode(), f"Bearer {key}".encode())
    if key and request.path != "/health" and not allowed:
        return _error(401, "no API key, or a wrong one")
    try:
        return await handler(request)
    except BadRequest as error:
        return _error(400, str(error))


def make_app(simulator: Simulator, key: str) -> web.Application:
    """The server's routes."""
    app = web.Application(middlewares=[_guard], client_max_size=64 << 20)
    app[_KEY] = key
    app.add_routes(
        [
            web.get("/health", simulator.health),
            web.get("/v1/models", simulator.models),
            web.get("/metrics", simulator.metrics),
            web.post("/v1/chat/completions", simulator.chat),
            web.post("/v1/completions", simulator.completions),
            web.post("/v1/embeddings", simulator.embeddings),
            web.post("/{path:.*}", simulator.others),
        ]
    )
    return app


async def serve(flags: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight. Raises OSError."""
    simulator = Simulator(flags.model, flags.options, flags.nodes - 1, flags.replica)
    await simulator.nodes.listen(flags.node_port)
    runner = web.AppRunner(
        make_app(simulator, os.environ.pop("SIM_API_KEY", "")),
        access_log=None,
        shutdown_timeout=0.5,
        handler_cancellation=True,  # as vLLM does: a client that disconnects frees its slot
    )
    await runner.setup()
    await web.TCPSite(runner, flags.host, flags.port, backlog=2048).start()
    print(f"simulating {flags.model} on {flags.host}:{flags.port}", flush=True)  # noqa: T201 - the engine's log
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ends = [asyncio.create_task(event.wait()) for event in (stop, simulator.nodes.lost)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        os._exit(1)
    await simulator.drained()
    await runner.cleanup()


def _options(text: str) -> SimOptions:
    try:
        return read_options(text)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"invalid: {error}") from error


def parse() -> argparse.Namespace:
    """The program's flags."""
    parser = argparse.ArgumentParser(
        prog="sim_server", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="the name under which it is served")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--replica", type=int, default=0, help="its number, for vllm.speed")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of this replica")
    parser.add_argument("--node-port", type=int, default=0, help="port for the other nodes")
    parser.add_argument("--follow", help="join the first node of a replica, at this host")
    parser.add_argument("--options", type=_options, default="{}", help="engine_options, as JSON")
    parser.add_argument("ignored", nargs="*", help="the rehearsed engine's arguments, after --")
    return parser.parse_args()


def main() -> int:
    """Run the simulator; the exit code."""
    flags = parse()
    print("this is a simulator: its answers mean nothing", flush=True)  # noqa: T201 - the engine's log
    if gpus := os.environ.get("CUDA_VISIBLE_DEVICES"):
        print(f"CUDA_VISIBLE_DEVICES={gpus}", flush=True)  # noqa: T201 - the engine's log
    if flags.ignored:
        print(f"ignored arguments: {' '.join(flags.ignored)}", flush=True)  # noqa: T201 - the engine's log
    if flags.options.fail_start is not None:
        print(f"simulated failure: {flags.options.fail_start}", file=sys.stderr)  # noqa: T201 - the engine's log
        return int(flags.options.fail_start_exit_code)
    try:
        asyncio.run(follow(flags.follow, flags.node_port) if flags.follow else serve(flags))
    except OSError as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201 - the engine's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
