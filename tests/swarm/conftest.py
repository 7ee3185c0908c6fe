"""A lifecycle that leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from domyn_swarm.backends.local.processes import TAG, carrying
from domyn_swarm.state import SwarmStore
from domyn_swarm.swarm.lifecycle import SwarmLifecycle


@pytest.fixture
def lifecycle() -> Iterator[SwarmLifecycle]:
    """Afterwards every swarm is down, and nothing carries any tag that ever was."""
    store = SwarmStore.open()
    made = SwarmLifecycle(store)
    yield made
    for record in store.swarms():
        made.down(record.name)
    tags = [record.tag for record in store.swarms(include_stopped=True)]
    assert [carrying(TAG, tag) for tag in tags] == [{}] * len(tags)
