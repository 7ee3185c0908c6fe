"""The `DataBackend` of a frame, or of a name."""

from __future__ import annotations

import importlib.util
from typing import Any

from domyn_swarm.data.arrow_backend import ArrowBackend
from domyn_swarm.data.data_backend import DataBackend
from domyn_swarm.data.pandas_backend import PandasBackend
from domyn_swarm.data.polars_backend import LazyPolarsBackend, PolarsBackend
from domyn_swarm.data.ray_backend import RayBackend
from domyn_swarm.errors import ConfigError

NAMES = ("arrow", "pandas", "polars", "ray")


def backend_of(data: object) -> DataBackend[Any]:
    """The backend of a frame.

    Raises:
        ConfigError: `data` is not a frame of a supported library.
    """
    backends: tuple[DataBackend[Any], ...] = (
        ArrowBackend(),
        PandasBackend(),
        PolarsBackend(),
        LazyPolarsBackend(),
        RayBackend(),
    )
    for backend in backends:
        if backend.accepts(data):
            return backend
    kind = type(data)
    raise ConfigError(
        f"{kind.__qualname__} ({kind.__module__}) is not a frame of {', '.join(NAMES)}.",
        hint="Pass a frame of one of these libraries, or the path of a file.",
    )


def backend_named(name: str) -> DataBackend[Any]:
    """The backend named `name`, which reads a job's files; for polars the lazy one.

    Raises:
        ConfigError: there is no such backend, or its library is not installed.
    """
    backends: dict[str, DataBackend[Any]] = {
        "arrow": ArrowBackend(),
        "pandas": PandasBackend(),
        "polars": LazyPolarsBackend(),
        "ray": RayBackend(),
    }
    if name not in backends:
        raise ConfigError(
            f"There is no data backend {name!r}.", hint=f"Choose one of {', '.join(NAMES)}."
        )
    if name != "arrow" and importlib.util.find_spec(name) is None:
        raise ConfigError(
            f"The data backend {name} needs {name}, which is not installed.",
            hint=f"pip install 'domyn-swarm[{name}]'",
        )
    return backends[name]
