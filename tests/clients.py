"""Clients of a swarm's endpoint that are no jobs: what they send passes the router."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from domyn_swarm.services.swarms import SwarmService
from patience import limit_s

CHAT = "/v1/chat/completions"
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def post(url: str, key_file: Path, body: dict[str, Any], path: str = CHAT) -> None:
    """Have a request answered by the endpoint at `url`."""
    headers = {
        "authorization": f"Bearer {key_file.read_text('utf-8').strip()}",
        "content-type": "application/json",
    }
    asked = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=limit_s()) as reply:
        assert reply.status == 200


def ask(name: str = "demo") -> None:
    """Have a short chat with a swarm of this process's home."""
    info = SwarmService().endpoint(name)
    post(info.url, info.key_file, HELLO)
