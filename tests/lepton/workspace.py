"""A stand-in for a workspace's API, over real HTTP: what it is asked to run really runs, here.

It speaks both deployment APIs (`new_api`), wants a token, refuses what is not there or there
already, and can be told to be slow, busy, broken or to talk nonsense (`faults`). Its shapes are
those that the SDK's own models read and its own tests show.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lepton.containers import Deployment, Job
from patience import scaled

TOKEN = "workspace-token-that-nobody-may-write-down"
ID = "stand-in"
_QUOTA = {"cpu": 1.0, "memory": 1, "accelerator_num": 0.0}


class Refused(Exception):
    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What happens to requests that match, instead of what they ask for."""

    matches: str  # regular expression over "METHOD /path"
    status: int = 200
    body: str = "{}"
    delay_s: float = 0.0
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False  # what was asked is done first: the answer alone is lost


class StandIn:
    """One workspace. `url` is the address of its API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new_api = False
        self.secrets: dict[str, str] = {}
        self.deployments: dict[str, Deployment] = {}
        self.jobs: dict[str, Job] = {}
        self.faults: list[Fault] = []
        self.asked: list[str] = []
        self.grace_s = scaled(30)
        self.crowded = False
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/api/v2/workspaces/{ID}"
        self._serving = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._serving.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.clear()

    def clear(self) -> None:
        for one in (*self.deployments.values(), *self.jobs.values()):
            one.close()
        self.deployments, self.jobs = {}, {}
        self.secrets, self.faults, self.asked = {}, [], []
        self.new_api, self.crowded, self.grace_s = False, False, scaled(30)

    def secret(self, name: str) -> str:
        if name not in self.secrets:
            raise Refused(400, f"no secret {name}")
        return self.secrets[name]

    # -- routes ----------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        kind, _, rest = path.strip("/").partition("/")
        name, _, what = rest.partition("/")
        if kind == "workspace":
            return self._info()
        if kind == "usersecrets":
            return self._secrets(method, name, body)
        if kind == "jobs":
            return self._jobs(method, name, what, query, body)
        if kind == ("endpoints" if self.new_api else "deployments"):
            return self._deployments(method, name, what, body)
        raise Refused(400 if kind in ("endpoints", "deployments") else 404, "wrong API")

    def _info(self) -> Any:
        return {
            "build_time": "",
            "git_commit": "1.2.3",
            "workspace_name": ID,
            "workspace_tier": "enterprise",
            "workspace_state": "normal",
            "supported_shapes": {"cpu.small": {}, "gpu.8xh200": {}},
            "workspace_disk_usage_bytes": 0,
            "workloads": dict.fromkeys((f"num_{one}" for one in _COUNTED), 0),
            "resource_quota": {"limit": _QUOTA, "used": _QUOTA},
            "features": {"enable_new_deployment_api": self.new_api},
        }

    def _secrets(self, method: str, name: str, body: Any) -> Any:
        if method == "GET":
            return [{"name": one} for one in self.secrets]  # never a value
        if method == "DELETE":
            if self.secrets.pop(name, None) is None:
                raise Refused(404, name)
            return {}
        for one in body:
            if one["name"] in self.secrets:
                raise Refused(409, one["name"])
            self.secrets[one["name"]] = one["value"]
        return {}

    # -- deployments -----------------------------------------------------------------------------

    def _deployments(self, method: str, name: str, what: str, body: Any) -> Any:
        for one in [one for one in self.deployments.values() if one.gone]:
            self.deployments.pop(one.name)
            one.close()
        if method == "POST":
            return self._create(body)
        if not name:
            return [self._shown(one) for one in self.deployments.values()]
        found = self.deployments.get(name)
        if found is None:
            raise Refused(404, name)
        if method == "DELETE":
            found.deleted_at = found.deleted_at or time.monotonic()
            return {}
        if method == "PATCH":
            found.document = _merged(found.document, body)
            found.reconcile()
        if what == "replicas":
            return [_replica(one.id, one.created_at) for one in found.containers]
        if what == "readiness" and not self.new_api:
            return {
                one.id: [_issue(*found.reason(index))] for index, one in enumerate(found.containers)
            }
        if what:
            raise Refused(404, what)
        return self._shown(found)

    def _create(self, body: Any) -> Any:
        name = body["metadata"].get("name") or body["metadata"]["id"]
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,35}", name):
            raise Refused(400, "name")
        if name in self.deployments:
            raise Refused(409, name)
        component = _of_components if self.new_api else _of_spec
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        document = {**body, "metadata": {**body["metadata"], "id": name, "name": name}}
        for one in component(document)["envs"]:
            if one.get("value_from"):
                self.secret(one["value_from"]["secret_name_ref"])
        made = Deployment(name, document, component, folder, self.secret, crowded=self.crowded)
        self.deployments[name] = made
        return self._shown(made)

    def _shown(self, one: Deployment) -> Any:
        url = one.gateway.url if one.gateway else ""
        if self.new_api:
            state = one.state().replace(" ", "")
            status = {"state": state, "external_url": url, "ready_replicas": one.ready()}
            return {**one.document, "status": status}
        endpoint = {"internal_endpoint": "", "external_endpoint": url}
        return {**one.document, "status": {"state": one.state(), "endpoint": endpoint}}

    # -- jobs ------------------------------------------------------------------------------------

    def _jobs(self, method: str, name: str, what: str, query: dict[str, str], body: Any) -> Any:
        if method == "POST":
            number = f"{body['metadata']['id']}-{secrets.token_hex(2)}"
            folder = self.folder / "jobs"
            folder.mkdir(parents=True, exist_ok=True)
            document = {**body, "metadata": {**body["metadata"], "id": number}}
            self.jobs[number] = Job(number, document, folder, self.secret, self.grace_s)
            return _job(self.jobs[number])
        archive = query.get("job_query_mode", "alive_only") != "alive_only"
        shown = {one.id: one for one in self.jobs.values() if archive or not one.deleted}
        if not name:
            label, _, value = query.get("query", "").partition("=")
            found = [
                one
                for one in shown.values()
                if not label or (one.document["metadata"].get("labels") or {}).get(label) == value
            ]
            return {"jobs": [_job(one) for one in found] if query.get("page") == "1" else []}
        job = shown.get(name)
        if job is None:
            raise Refused(404, name)
        if method == "PATCH" and body["spec"].get("stopped"):
            job.stop()
        if method == "DELETE":
            job.close()
            job.deleted = True
            return {}
        job.state()  # time has passed
        if what == "replicas":
            return [_replica(f"{job.id}-0", 1)] if job.process is not None else []
        return _job(job)

    def log(self, path: str) -> tuple[Path, Any] | None:
        """The file of a log that is asked for, and whether its container still runs."""
        found = re.fullmatch(r"/(\w+)/([\w-]+)/replicas/([\w-]+)/log", path)
        if found is None:
            return None
        if found[1] == "jobs":
            job = self.jobs.get(found[2])
            if job is None or job.process is None:
                raise Refused(404, path)
            return job.log, job.process
        deployment = self.deployments.get(found[2])
        containers = deployment.containers if deployment else []
        one = next((one for one in containers if one.id == found[3]), None)
        if one is None:
            raise Refused(404, path)
        return one.log, one.process


_COUNTED = ("deployments", "jobs", "pods", "secrets", "image_pull_secrets")


def _replica(number: str, created_at: int) -> Any:
    node = {"name": "node-1", "id": "node-1"}
    metadata = {"id": number, "created_at": created_at}
    return {"id": number, "metadata": metadata, "status": {"node": node}}


def _issue(reason: str, message: str) -> Any:
    return {"reason": reason, "message": message, "creationTimestamp": "2026-11-26T00:00:00Z"}


def _job(job: Job) -> Any:
    state = job.state()
    counts = {"succeeded": int(state == "Completed"), "failed": int(state == "Failed")}
    return {**job.document, "status": {"state": state, **counts}}


def _of_spec(document: Any) -> dict[str, Any]:
    spec = document["spec"]
    return {
        "command": spec["container"]["command"],
        "port": spec["container"]["ports"][0]["container_port"],
        "envs": spec.get("envs") or [],
        "min_replicas": spec["resource_requirement"]["min_replicas"],
    }


def _of_components(document: Any) -> dict[str, Any]:
    if document["metadata"].get("labels"):
        raise Refused(400, "labels")
    [one] = document["spec"]["components"]
    return {
        "command": one["command"],
        "port": one["ports"][0]["container_port"],
        "envs": one.get("envs") or [],
        "min_replicas": one["min_replicas"],
    }


def _merged(base: Any, patch: Any) -> Any:
    """RFC 7386: objects merge, everything else replaces."""
    if not isinstance(patch, dict) or not isinstance(base, dict):
        return patch
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            path = re.sub(r"^/api/v2/workspaces/[^/]+", "", url.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = f"{self.command} {path}"
            stand_in.asked.append(asked)
            try:
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    raise Refused(401, "token")
                fault = self._fault(asked)
                if fault is not None and not fault.after:
                    return self._reply(fault.status, fault.body, fault.headers)
                log = stand_in.log(path)
                if log is not None:
                    return self._stream(*log)
                with stand_in.lock:
                    body = json.loads(content) if content else None
                    found = json.dumps(stand_in.answer(self.command, path, query, body))
                if fault is not None:
                    return self._reply(fault.status, fault.body, fault.headers)
                return self._reply(200, found)
            except Refused as refused:
                return self._reply(refused.status, json.dumps({"message": str(refused)}))

        def _fault(self, asked: str) -> Fault | None:
            for fault in stand_in.faults:
                if re.search(fault.matches, asked) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    time.sleep(fault.delay_s)
                    return fault
            return None

        def _reply(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
            data = body.encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, path: Path, process: Any) -> None:
            """The log from its beginning, and on until its container has ended."""
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                with path.open("rb") as file:
                    while True:
                        over = process.poll() is not None
                        if data := file.read():
                            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                        elif over:
                            self.wfile.write(b"0\r\n\r\n")
                            return
                        time.sleep(0.02)
            except OSError:
                self.close_connection = True

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _handle  # noqa: N815 - the library's

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    return Handler
