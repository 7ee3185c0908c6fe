"""Which tests share a process, which begin first where pytest runs several side by side, and which
are fast.

`make test` is one run of pytest: while tests wait for schedulers, others work. The tests of one
file stay together, since they share its fixtures; what asks a Slurm cluster runs in a few lanes
with a cluster each, and what asks Ray in one. What waits long begins first, so that the end of the
run is many short tests.
"""

from __future__ import annotations

import pytest
from _pytest.nodeid import coerce_node_id

# Modules that ask a Slurm cluster; each lane takes about as long as the others.
_CLUSTERS = {
    **dict.fromkeys(("test_swarm.py", "test_failures.py", "test_page.py", "test_compute.py"), 0),
    **dict.fromkeys(("test_jobs.py", "test_layouts.py", "test_job_ends.py", "test_waiting.py"), 1),
    **dict.fromkeys(("test_network.py", "test_comebacks.py", "test_serving.py"), 2),
    "test_site_limits.py": 4,  # a cluster of its own, with accounts
    "": 3,  # the small ones
}
_WHOLE = ("acceptance", "documentation", "install", "monitoring")  # folders: installed programs
# Folders and modules that start a swarm's programs, or kill a job's: minutes of waiting, no rule of
# theirs without a test in virtual time.
_PROGRAMS = ("swarm", "chaos", "faults")
_OF_PROGRAMS = {
    *("endpoint/test_watchdog.py", "endpoint/test_endpoint.py", "endpoint/test_full_disk.py"),
    *("endpoint/test_straight_to_replicas.py", "conformance/test_serving.py"),
    *("conformance/test_compute.py", "batch/test_workers.py", "batch/test_memory.py"),
    *("engines/test_servers.py", "lepton/test_workspace.py", "local/test_processes.py"),
    *("cli/test_outcomes.py", "jobs/test_notebook.py"),
}
_COMMANDS = ("PROGRAM", "CommandLine", "Terminal")  # names of modules that drive the command
_NOT_FAST = ("cluster", "ray", "slow", "vllm", "install")  # marks
_FIRST = ("swarm", "jobs", "acceptance", "monitoring", "chaos", "batch")  # folders, in order


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what it asks for: a cluster, Ray, or neither and no installed command."""
    fixtures = getattr(item, "fixturenames", ())
    if "ray_cluster" in fixtures:
        item.add_marker(pytest.mark.ray)
    if _asks_a_cluster(item):
        item.add_marker(pytest.mark.cluster)
    if not any(item.get_closest_marker(name) for name in _NOT_FAST) and _is_of_one_process(item):
        item.add_marker(pytest.mark.fast)


@pytest.hookimpl(trylast=True)  # after the shuffling: within a lane its order stays
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put lanes in order, and name each test's where processes run side by side.

    What follows `@` in a test's id is its lane for `--dist loadgroup`. pytest-xdist 3.8 writes it
    to an attribute that pytest 9.2 does not read.
    """
    items.sort(key=_precedence)
    if config.getoption("loadgroup", default=False):
        for item in items:
            item._id = coerce_node_id(f"{item.nodeid}@{_lane(item)}")
            assert item.nodeid.endswith(f"@{_lane(item)}")


def _asks_a_cluster(item: pytest.Item) -> bool:
    """By a fixture that is one, or by what a test of each platform is made for."""
    if _folder(item) == "conformance" and "[slurm" in item.name:
        return True
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    made = (known[name][-1].func for name in getattr(item, "fixturenames", ()) if known.get(name))
    return any(
        "SlurmCluster" in str(getattr(one, "__annotations__", {}).get("return")) for one in made
    )


def _is_of_one_process(item: pytest.Item) -> bool:
    """Whether it drives our functions, not the installed command nor a swarm's programs."""
    module, path = getattr(item, "module", None), item.location[0].removeprefix("tests/")
    if _folder(item) in (*_WHOLE, *_PROGRAMS) or path in _OF_PROGRAMS:
        return False
    return not any(hasattr(module, name) for name in _COMMANDS)


def _folder(item: pytest.Item) -> str:
    return item.location[0].split("/")[1]


def _lane(item: pytest.Item) -> str:
    if item.get_closest_marker("cluster"):
        return f"slurm-{_CLUSTERS.get(item.path.name, _CLUSTERS[''])}"
    if item.get_closest_marker("ray") or (_folder(item) == "acceptance" and "ray" in item.name):
        return "ray"  # two clusters of Ray side by side take most of two cores
    if "standing" in getattr(item, "fixturenames", ()):
        return "standing"
    return item.location[0]


def _precedence(item: pytest.Item) -> int:
    if item.get_closest_marker("cluster"):
        return -2
    if _lane(item) == "ray":
        return -1
    folder = _folder(item)
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)
