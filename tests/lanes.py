"""Which tests share a process, which begin first where pytest runs several side by side, and which
are fast.

`make test` is one run of pytest: while tests wait for schedulers, others work. The tests of one
file stay together, since they share its fixtures; what asks a Slurm cluster runs in a few lanes
with a cluster each, and what asks Ray in one. What waits long begins first, so that the end of the
run is many short tests.
"""

from __future__ import annotations

import pytest

_WHOLE = ("acceptance", "documentation", "install", "monitoring")  # folders: installed programs
_COMMANDS = ("PROGRAM", "CommandLine", "Terminal")  # names of modules that drive the command
_NOT_FAST = ("cluster", "ray", "slow", "vllm", "install")  # marks
_FIRST = ("slurm", "conformance", "jobs", "acceptance", "monitoring", "chaos")  # folders, in order


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what it asks for: a cluster, Ray, or neither and no installed command."""
    fixtures = getattr(item, "fixturenames", ())
    if "ray_cluster" in fixtures:
        item.add_marker(pytest.mark.ray)
    if "slurm" in fixtures or "[slurm" in item.name:
        item.add_marker(pytest.mark.cluster)
    if not any(item.get_closest_marker(name) for name in _NOT_FAST) and _is_of_one_process(item):
        item.add_marker(pytest.mark.fast)


@pytest.hookimpl(trylast=True)  # after the shuffling: within a lane its order stays
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its lane, and put lanes in order."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            lane = "ray" if item.get_closest_marker("ray") else item.location[0]
            item.add_marker(pytest.mark.xdist_group(lane))
    items.sort(key=_precedence)


def _folder(item: pytest.Item) -> str:
    return item.location[0].split("/")[1]


def _is_of_one_process(item: pytest.Item) -> bool:
    """Whether it drives our functions, not the installed command."""
    module = getattr(item, "module", None)
    return _folder(item) not in _WHOLE and not any(hasattr(module, name) for name in _COMMANDS)


def _precedence(item: pytest.Item) -> int:
    if item.get_closest_marker("cluster"):
        return -2
    if item.get_closest_marker("ray"):
        return -1
    folder = _folder(item)
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)
