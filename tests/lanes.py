"""Which tests share a process, and which begin first, where pytest runs several side by side.

`make test` is one run of pytest: while tests wait for schedulers, others work. The tests of one
file stay together, since they share its fixtures; what asks a Slurm cluster runs in a few lanes
with a cluster each, and what asks Ray in one. What waits long begins first, so that the end of the
run is many short tests.
"""

from __future__ import annotations

import pytest

_FIRST = ("slurm", "conformance", "jobs", "acceptance", "monitoring", "chaos")  # folders, in order


@pytest.hookimpl(trylast=True)  # after the shuffling; the order of sorted files stays shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test its lane, and put lanes in order."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            lane = "ray" if item.get_closest_marker("ray") else item.location[0]
            item.add_marker(pytest.mark.xdist_group(lane))
    items.sort(key=_precedence)


def _precedence(item: pytest.Item) -> int:
    if item.get_closest_marker("cluster"):
        return -2
    if item.get_closest_marker("ray"):
        return -1
    folder = item.location[0].split("/")[1]
    return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)
