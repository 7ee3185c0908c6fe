"""A process ends well while a thread of the HTTP library is still in Python."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from patience import limit_s

KEY = "key"
# The loop's wake-up takes so long that the script is over before it returns, and so does the end of
# the interpreter: without waiting, the thread comes back in the middle of that.
ENDS = """
import asyncio, sys, time, types
from domyn_swarm.net.http import open_client

class Loop(asyncio.SelectorEventLoop):
    def call_soon_threadsafe(self, *what, **more):
        handle = super().call_soon_threadsafe(*what, **more)
        time.sleep(0.3)
        return handle

class EndsSlowly:
    def __del__(self, sleep=time.sleep):
        sleep(1.0)

module = sys.modules["ends slowly"] = types.ModuleType("ends slowly")
module.kept = EndsSlowly()
del module

async def main(url):
    client = open_client("key", use_proxy=False)
    reply = await client.request("GET", f"{url}/v1/models", None, 60.0)
    await client.close()
    assert reply.status == 200

with asyncio.Runner(loop_factory=Loop) as runner:
    runner.run(main(sys.argv[1]))
"""


def test_a_script_does_not_abort_as_the_thread_that_woke_it_comes_back(server: Any) -> None:
    argv = [sys.executable, "-c", ENDS, server.url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s(), check=False)
    assert (done.returncode, done.stderr) == (0, "")


FOREIGN = """
import ctypes, threading, time
from domyn_swarm.net.foreign_threads import await_at_exit

inside, over = threading.Event(), threading.Event()

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def called(_):
    inside.set()
    over.wait()
    time.sleep(0.3)
    print("left")

await_at_exit()
thread = ctypes.c_ulong()
ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, called, None)
inside.wait()
print("over")
over.set()
"""


def test_a_process_ends_once_no_foreign_thread_is_in_python() -> None:
    argv = [sys.executable, "-c", FOREIGN]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["over", "left"]


STAYS = """
import _thread, time
from domyn_swarm.net import foreign_threads

foreign_threads._LEAVES_S = 0.2
foreign_threads.await_at_exit()
_thread.start_new_thread(time.sleep, (3600.0,))  # of which `threading` knows nothing
_thread.start_new_thread(lambda: time.sleep(3600.0), ())
time.sleep(0.1)
"""


def test_a_thread_that_stays_is_not_waited_for_long() -> None:
    argv = [sys.executable, "-c", STAYS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
