"""A tiny LLM server for tests, standard library only: `engine_program.py HOST PORT CONTROL_DIR`.

Files in CONTROL_DIR steer it while it runs: `health` (status), `health_delay` and `metrics_delay`
(seconds), `die` (exit code, at start), `waiting`, `tokens` (metrics), `tokens_per_s`, `first`
(status of a chat request), `deaf` (nobody listens any more), `prints` and `reads` (it does so as if
it loaded, and does not serve yet), `notes` (printed at first), `echoes` (prints what it is asked).
It writes there what it did.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST, PORT, CONTROL = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
RUNNING: set[int] = set()
LOCK = threading.Lock()


def told(name: str, default: str) -> str:
    try:
        return (CONTROL / name).read_text().strip()
    except OSError:
        return default


def note(name: str, line: object) -> None:
    with (CONTROL / name).open("a") as file:
        file.write(f"{line}\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def reply(self, status: int, body: str, kind: str = "application/json") -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        if self.path == "/health":
            time.sleep(float(told("health_delay", "0")))
            note("probed", self.path)
            self.reply(int(told("health", "200")), "{}")
        elif self.path == "/v1/models":
            self.reply(200, json.dumps({"object": "list", "data": [{"id": "m"}]}))
        elif self.path == "/metrics":
            time.sleep(float(told("metrics_delay", "0")))
            waiting, tokens = told("waiting", "0"), float(told("tokens", "0"))
            tokens += int(time.time() * float(told("tokens_per_s", "0")))
            lines = [
                f'running{{model="m"}} {len(RUNNING)}',
                f"waiting {waiting}",
                f"tokens {tokens}",
            ]
            self.reply(200, "\n".join(lines) + "\n", "text/plain")
        else:
            self.reply(404, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {os.environ['ENGINE_KEY']}":
            self.reply(401, "{}")
            return
        prompt = body["messages"][-1]["content"]
        if told("echoes", ""):
            print(prompt, flush=True)
        with LOCK:
            note("asked", prompt)
            RUNNING.add(threading.get_ident())
        try:
            word, _, rest = prompt.partition(":")
            if word == "slow":
                time.sleep(float(rest.split(":")[0]))
            status = int(word) if word.isdigit() else 200
            if prompt == "first":
                status = int(told("first", "200"))
            choice = {"index": 0, "message": {"role": "assistant", "content": prompt}}
            self.reply(
                status,
                json.dumps(
                    {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 1,
                        "model": "m",
                        "choices": [choice],
                    }
                ),
            )
        finally:
            RUNNING.discard(threading.get_ident())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    note("starts", f"{os.getpid()} {time.time()}")
    if told("child", ""):
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note("children", grandchild.pid)
    print(told("notes", ""), flush=True)
    while told("prints", "") or told("reads", ""):
        if told("prints", ""):
            print("Loading shard", flush=True)
        else:
            os.read(os.open("/dev/zero", os.O_RDONLY), 1 << 20)
        time.sleep(0.1)
    if told("die", ""):
        print(told("last_words", "dying"), flush=True)
        sys.exit(int(told("die", "1")))
    if told("stubborn", ""):
        signal.signal(signal.SIGTERM, lambda *_: note("terms", time.time()))
    else:
        signal.signal(signal.SIGTERM, lambda *_: (note("terms", time.time()), os._exit(0)))
    server = Server((HOST, PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while not told("deaf", ""):
        time.sleep(0.05)
    server.shutdown()
    server.server_close()
    signal.pause()
