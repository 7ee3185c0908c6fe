"""The simulator's server: OpenAI-shaped, deterministic, with the faults it was told to have.

It is for rehearsing configurations and for tests: its answers mean nothing. The key comes from
`SIM_API_KEY`; without it every request is let in.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from domyn_swarm.engines.sim import READY_PROMPT, ErrorRule, SimOptions, sim_reply

_DRAIN_S = 60.0
_EMBEDDING_DIMENSIONS = 8
_KEY = web.AppKey("key", str)


class Simulator:
    """State and behaviour of one simulated server."""

    def __init__(self, model: str, options: SimOptions) -> None:
        self._model = model
        self._options = options
        self._slots = asyncio.Semaphore(options.slots)
        self._seen: Counter[tuple[int, str]] = Counter()
        self._ready_at = time.monotonic() + options.start_s
        self.running = 0
        self.waiting = 0
        self.requests = 0
        self.succeeded = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0

    # -- answers ---------------------------------------------------------------------------------

    async def health(self, _request: web.Request) -> web.Response:
        """200 once it has started."""
        return web.Response(status=200 if time.monotonic() >= self._ready_at else 503)

    async def models(self, _request: web.Request) -> web.Response:
        """The one model."""
        return web.json_response(
            {"object": "list", "data": [{"id": self._model, "object": "model", "created": 0}]}
        )

    async def metrics(self, _request: web.Request) -> web.Response:
        """The gauges and counters that vLLM has, by its names."""
        label = f'{{model_name="{self._model}"}}'
        values = {
            "vllm:num_requests_running": self.running,
            "vllm:num_requests_waiting": self.waiting,
            "vllm:kv_cache_usage_perc": self.running / self._options.slots,
            "vllm:prompt_tokens_total": self.prompt_tokens,
            "vllm:generation_tokens_total": self.generation_tokens,
            "vllm:request_success_total": self.succeeded,
        }
        lines = [f"{name}{label} {float(value)}" for name, value in values.items()]
        return web.Response(text="\n".join(lines) + "\n")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""

        def prompt(body: dict[str, Any]) -> str:
            content = body["messages"][-1]["content"]
            return content if isinstance(content, str) else json.dumps(content)

        return await self._complete(request, prompt, chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._complete(request, lambda body: str(body["prompt"]), chat=False)

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings: numbers derived from each text."""
        body = await _body(request)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]

        async def answer() -> web.Response:
            data = [
                {"object": "embedding", "index": index, "embedding": _embedding(str(text))}
                for index, text in enumerate(texts)
            ]
            usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
            return web.json_response({"object": "list", "data": data, "usage": usage})

        return await self._serve(body, str(texts[0]), request, answer)

    async def _complete(
        self, request: web.Request, read_prompt: Callable[[dict[str, Any]], str], *, chat: bool
    ) -> web.StreamResponse:
        body = await _body(request)
        try:
            prompt = read_prompt(body)
        except (KeyError, IndexError, TypeError):
            return _error(400, "the request has no prompt")

        async def answer() -> web.StreamResponse:
            limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
            text = sim_reply(prompt, limit)
            usage = {
                "prompt_tokens": len(prompt.split()),
                "completion_tokens": len(text.split()),
                "total_tokens": len(prompt.split()) + len(text.split()),
            }
            if self._options.tokens_per_s:
                await asyncio.sleep(usage["completion_tokens"] / self._options.tokens_per_s)
            self.prompt_tokens += usage["prompt_tokens"]
            self.generation_tokens += usage["completion_tokens"]
            if body.get("stream"):
                return await self._stream(request, text, usage, chat=chat)
            choices = [
                {"index": index, "finish_reason": "stop", **_content(text, chat=chat)}
                for index in range(int(body.get("n") or 1))
            ]
            kind = "chat.completion" if chat else "text_completion"
            return web.json_response(self._envelope(kind, choices) | {"usage": usage})

        return await self._serve(body, prompt, request, answer)

    async def _stream(
        self, request: web.Request, text: str, usage: dict[str, int], *, chat: bool
    ) -> web.StreamResponse:
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        kind = "chat.completion.chunk" if chat else "text_completion"
        for word in text.split():
            piece = {"delta": {"content": f"{word} "}} if chat else {"text": f"{word} "}
            await _event(reply, self._envelope(kind, [{"index": 0, **piece}]))
        await _event(reply, self._envelope(kind, []) | {"usage": usage})
        await reply.write(b"data: [DONE]\n\n")
        await reply.write_eof()
        return reply

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"sim-{self.requests}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model,
            "choices": choices,
        }

    # -- slots, latency, faults ------------------------------------------------------------------

    async def _serve(
        self,
        body: dict[str, Any],
        prompt: str,
        request: web.Request,
        answer: Callable[[], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        if body.get("model") != self._model:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if prompt != READY_PROMPT:
            self.requests += 1
            self._crash_or_not()
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            frozen_after = self._options.freeze_after_requests
            if frozen_after is not None and self.requests > frozen_after:
                await asyncio.Event().wait()
            await asyncio.sleep(self._latency_s())
            rule = self._rule(prompt)
            reply = await answer() if rule is None else await _fault(rule, request)
            self._keep(prompt, reply.status)
            self.succeeded += reply.status == 200
            return reply
        finally:
            self.running -= 1
            self._slots.release()

    def _crash_or_not(self) -> None:
        crash_after = self._options.crash_after_requests
        if crash_after is not None and self.requests > crash_after:
            print("simulated crash", file=sys.stderr, flush=True)  # noqa: T201 - the engine's log
            os._exit(13)

    def _latency_s(self) -> float:
        sigma = self._options.latency_sigma
        if not sigma:
            return self._options.latency_s
        return self._options.latency_s * math.exp(random.gauss(0, sigma))

    def _rule(self, prompt: str) -> ErrorRule | None:
        if prompt == READY_PROMPT:
            return None
        for number, rule in enumerate(self._options.errors):
            if re.search(rule.match, prompt):
                self._seen[number, prompt] += 1
                if rule.times is None or self._seen[number, prompt] <= rule.times:
                    return rule
        return None

    def _keep(self, prompt: str, status: int) -> None:
        if self._options.record is None or prompt == READY_PROMPT:
            return
        line = json.dumps({"prompt": prompt, "status": status}) + "\n"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        descriptor = os.open(self._options.record, flags, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    async def drained(self) -> None:
        """Return when nothing is in flight, or after a minute."""
        deadline = time.monotonic() + _DRAIN_S
        while (self.running or self.waiting) and time.monotonic() < deadline:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.02)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text='{"error": {"message": "the body is not a JSON object"}}')
    return body


async def _fault(rule: ErrorRule, request: web.Request) -> web.Response:
    if rule.hang:
        await asyncio.Event().wait()
    if rule.reset and request.transport is not None:
        request.transport.abort()
    headers = {} if rule.retry_after_s is None else {"retry-after": str(rule.retry_after_s)}
    return _error(rule.status or 500, "simulated error", headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    document = {"error": {"message": message, "type": "simulated", "code": status}}
    return web.json_response(document, status=status, headers=headers)


def _content(text: str, *, chat: bool) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if chat else {"text": text}


def _embedding(text: str) -> list[float]:
    digest = hashlib.blake2b(text.encode(), digest_size=_EMBEDDING_DIMENSIONS).digest()
    return [byte / 255 for byte in digest]


async def _event(reply: web.StreamResponse, document: dict[str, Any]) -> None:
    await reply.write(f"data: {json.dumps(document)}\n\n".encode())


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Everything but /health wants the key."""
    key = request.app[_KEY]
    given = request.headers.get("authorization", "")
    allowed = hmac.compare_digest(given.encode(), f"Bearer {key}".encode())
    if key and request.path != "/health" and not allowed:
        return _error(401, "no key, or a wrong one")
    return await handler(request)


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
        ]
    )
    return app


async def serve(flags: argparse.Namespace, options: SimOptions) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight."""
    import signal

    simulator = Simulator(flags.model, options)
    runner = web.AppRunner(
        make_app(simulator, os.environ.pop("SIM_API_KEY", "")), access_log=None, shutdown_timeout=1
    )
    await runner.setup()
    await web.TCPSite(runner, flags.host, flags.port, backlog=2048).start()
    print(f"simulating {flags.model} on {flags.host}:{flags.port}", flush=True)  # noqa: T201 - the engine's log
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
    await simulator.drained()
    await runner.cleanup()


def main() -> int:
    """Run the simulator; 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="sim_server", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--options", default="{}", help="engine_options, as JSON")
    flags = parser.parse_args()
    options = SimOptions.model_validate_json(flags.options)
    if options.fail_start is not None:
        print(f"simulated failure: {options.fail_start}", file=sys.stderr)  # noqa: T201 - the engine's log
        return 1
    if options.record is not None:
        Path(options.record).parent.mkdir(parents=True, exist_ok=True)
    try:
        asyncio.run(serve(flags, options))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)  # noqa: T201 - the engine's log
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
