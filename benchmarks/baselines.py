"""What the engine is compared with: loops that do nothing but ask.

    python benchmarks/baselines.py stripped|openai URL INPUT CONCURRENCY

`stripped`: the same HTTP library and event loop, one request body per row, replies thrown away.
`openai`: `AsyncOpenAI` behind a semaphore, a task per row, as a script would have it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pyarrow.parquet as pq


def prompts(path: str) -> Iterator[str]:
    """The input's prompts, read a batch at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(2048):
            yield from batch.column(0).to_pylist()


async def stripped(url: str, path: str, concurrency: int) -> None:
    """The floor: what the HTTP library itself costs."""
    import msgspec
    from pyreqwest.client import ClientBuilder

    rows = prompts(path)
    encode = msgspec.json.Encoder().encode
    async with ClientBuilder().http1_only().build() as client:

        async def work() -> None:
            for prompt in rows:
                body = {"model": "mock", "messages": [{"role": "user", "content": prompt}]}
                request = client.post(f"{url}/v1/chat/completions").body_bytes(encode(body))
                reply = await request.header("content-type", "application/json").build().send()
                await reply.bytes()

        await asyncio.gather(*[work() for _ in range(concurrency)])


async def official(url: str, path: str, concurrency: int) -> None:
    """The usual script."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    slots = asyncio.Semaphore(concurrency)

    async def ask(prompt: str) -> str | None:
        async with slots:
            reply = await client.chat.completions.create(
                model="mock", messages=[{"role": "user", "content": prompt}]
            )
            return reply.choices[0].message.content

    await asyncio.gather(*[ask(prompt) for prompt in prompts(path)])
    await client.close()


if __name__ == "__main__":
    kind, endpoint, source, width = sys.argv[1:]
    if kind == "openai":
        asyncio.run(official(endpoint, source, int(width)))
    else:
        import uvloop

        uvloop.run(stripped(endpoint, source, int(width)))
