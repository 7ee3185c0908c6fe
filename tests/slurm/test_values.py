"""What a configuration holds, on its way to the nodes of the real cluster."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slurm.cluster import SlurmCluster
from slurm.swarms import ENDPOINT_TASK, Up, endpoint_job, program

ENV_SERVER = """
import http.server, json, os, sys
record, argument, port = sys.argv[1:]
with open(record, "a") as file:
    known = {name: os.environ.get(name) for name in ("ODD", "ODDER")}
    file.write(json.dumps({**known, "argument": argument}) + chr(10))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "m"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
http.server.ThreadingHTTPServer(("0.0.0.0", int(port)), Handler).serve_forever()
"""


def test_values_arrive_as_they_were_written(
    up: Up, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMYN_SWARM_LOG_LEVEL", "DEBUG")
    odd = "a b,c $HOME `id` \"q\" 'p' \\ $(x) % é\ttab"
    record = tmp_path / "requests.jsonl"
    up(
        replicas=1,
        env={"ODD": odd},
        backend={"env": {"ODDER": odd, "DOMYN_SWARM_LOG_LEVEL": "ERROR"}},
        engine="command",
        gpus_per_replica=0,
        engine_options={
            "argv": [
                *("{python}", "-c", ENV_SERVER, str(record), odd, "{port}"),
            ]
        },
    )
    told = json.loads(record.read_text().splitlines()[0])
    assert told == {"ODD": odd, "ODDER": odd, "argument": odd}
    endpoint = program(ENDPOINT_TASK, endpoint_job(slurm))
    assert endpoint.environ()["DOMYN_SWARM_LOG_LEVEL"] == "DEBUG"  # the shell's, as in jobs
