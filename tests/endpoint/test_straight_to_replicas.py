"""Requests that a job sends to the replicas themselves, while those drain, die and join."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable

from domyn_swarm.backends.endpoint.view import EndpointAddress, read_address
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.session import EndpointAccess, Meter, RetryPolicy, open_session
from domyn_swarm.net.openai import CHAT_PATH, OpenAIClient
from endpoint.bench import API_KEY, COLLECTOR_KEY, Bench
from patience import until_async

AT_ONCE = 6


def access_to(bench: Bench) -> EndpointAccess:
    def now() -> EndpointAddress:
        address = read_address(bench.paths)
        assert address is not None
        return address

    meter = Meter(lambda: str(now().collector_url), COLLECTOR_KEY)
    return EndpointAccess(lambda: now().url, API_KEY, meter=meter, model="m")


async def ask_until(over: Callable[[], bool], client: OpenAIClient, name: str) -> int:
    """Ask one after the other what the router refuses (a role); how many were answered."""
    count = 0
    while not over():
        asked = [{"role": "critic", "content": f"slow:0.05:{name}:{count}"}]
        await client.transport.post(CHAT_PATH, {"model": "m", "messages": asked})
        count += 1
    return count


async def test_replicas_drain_die_and_join_without_a_failed_request(bench: Bench) -> None:
    bench.start_endpoint()
    drained, killed = (bench.replica(index).start() for index in (0, 1))
    for index in (0, 1):
        await until_async(lambda index=index: bench.state(index) == "ready")
    tally, over = Tally(), asyncio.Event()
    async with open_session(access_to(bench), RetryPolicy(retries=0), tally, print) as (client, _):
        loads = [
            asyncio.create_task(ask_until(over.is_set, client, str(number)))
            for number in range(AT_ONCE)
        ]
        await until_async(lambda: all(len(one.lines("asked")) > 10 for one in (drained, killed)))
        assert drained.process is not None
        assert killed.process is not None
        drained.process.send_signal(signal.SIGTERM)
        await until_async(lambda: bench.state(0) == "exited")
        joined = bench.replica(2).start()
        await until_async(lambda: len(joined.lines("asked")) > 20)
        executed_once = Counter(drained.lines("asked"))
        killed.process.kill()  # and with it its engine
        before = len(joined.lines("asked"))
        await until_async(lambda: len(joined.lines("asked")) > before + 50)
        over.set()
        answered = sum(await asyncio.gather(*loads))
    executed = Counter(line for one in bench.replicas for line in one.lines("asked"))
    executed.pop("first", None)
    assert len(executed) == answered
    assert max(executed_once.values()) == 1  # a replica that drains loses nothing
    assert executed.total() - answered <= AT_ONCE  # and one that dies what was at it
    assert bench.view().replicas[2].state == "ready"
