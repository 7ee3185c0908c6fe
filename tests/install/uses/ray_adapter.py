"""Import Ray's adapter and what it works with. No cluster: the tests of the adapter start one."""

import ray.data

from domyn_swarm.data.registry import backend_named
from domyn_swarm.jobs import ray as engine

assert backend_named("ray").accepts(object()) is False
assert engine.__name__ == "domyn_swarm.jobs.ray"
assert ray.data.Dataset
print("imported")
