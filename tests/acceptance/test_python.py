"""A swarm and its jobs in Python, as a notebook or a script has them: on the standing swarm."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest

from domyn_swarm import DomynLLMSwarm
from domyn_swarm.errors import ConfigError, StateError

if TYPE_CHECKING:
    from acceptance.conftest import Standing

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
    from local_swarms import config

    swarm = DomynLLMSwarm(config())
    for ask in (lambda: swarm.endpoint, lambda: swarm.api_key, swarm.openai):
        with pytest.raises(StateError, match="is not up"):
            ask()
