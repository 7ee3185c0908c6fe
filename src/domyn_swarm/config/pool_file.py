"""A pool file: several swarms, each with its own configuration file and overrides of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from domyn_swarm.config.loading import load
from domyn_swarm.config.mistakes import config_error, validated
from domyn_swarm.config.models import DomynLLMSwarmConfig, check_name
from domyn_swarm.config.section import Section
from domyn_swarm.config.sources import Layer, read_yaml, section_of
from domyn_swarm.errors import ConfigError, Mistake
from domyn_swarm.paths import expanded

_NAME_CHARACTERS = 35  # so that `NAME-1234` is a swarm's name
Name = Annotated[str, AfterValidator(check_name)]


class PoolMember(Section):
    """One swarm of a pool."""

    config: str = Field(
        min_length=1, description="its configuration file, relative to the pool's file"
    )
    name: Name | None = Field(
        None, description="empty: the name in its configuration, else POOL-1, POOL-2, …"
    )
    replicas: int | None = Field(None, ge=1, description="empty: as in its configuration")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="keys that replace those of its configuration"
    )


def _not_empty(members: tuple[PoolMember, ...]) -> tuple[PoolMember, ...]:
    if not members:
        raise ValueError("must list at least one swarm, such as [{config: swarm.yaml}]")
    return members


Members = Annotated[tuple[PoolMember, ...], AfterValidator(_not_empty)]


class PoolConfig(Section):
    """Several swarms that are started and stopped together."""

    name: Annotated[Name, Field(max_length=_NAME_CHARACTERS)] = Field(
        description="name of the pool"
    )
    swarms: Members = Field(description="swarms of the pool")
    max_parallel: int = Field(4, ge=1, le=64, description="swarms that are started at once")


@dataclass(frozen=True)
class PooledSwarm:
    """One swarm of a pool. Its configuration is complete and has a name."""

    path: Path
    config: DomynLLMSwarmConfig

    @property
    def name(self) -> str:
        """The swarm's name, the same each time the file is read."""
        return str(self.config.name)


@dataclass(frozen=True)
class Pool:
    """A valid pool file."""

    name: str
    max_parallel: int
    swarms: tuple[PooledSwarm, ...]


def load_pool(path: Path) -> Pool:
    """The pool in a file, with the configurations of its swarms.

    Raises:
        ConfigError: a file is invalid; the message lists the mistakes of all files, with lines.
    """
    layer = read_yaml(path)
    pool = validated(PoolConfig, layer, path)
    swarms: list[PooledSwarm] = []
    mistakes: list[Mistake] = []
    for index, member in enumerate(pool.swarms):
        try:
            swarms.append(_pooled(pool, index, member, layer, path))
        except ConfigError as error:
            mistakes += error.mistakes or [Mistake(_place(layer, path, index), "", error.message)]
    mistakes += _duplicate_names(swarms, layer, path) if not mistakes else []
    if mistakes:
        raise config_error(list(dict.fromkeys(mistakes)), path)
    return Pool(pool.name, pool.max_parallel, tuple(swarms))


def _pooled(
    pool: PoolConfig, index: int, member: PoolMember, layer: Layer, path: Path
) -> PooledSwarm:
    file = path.absolute().parent / expanded(member.config)
    if not file.is_file():
        place = _place(layer, path, index, "config")
        mistake = Mistake(place, f"swarms.{index}.config", f"there is no file {file}")
        raise ConfigError(str(mistake), mistakes=[mistake])
    config = load(file, upper=_upper(layer, index)).config
    name = config.name or f"{pool.name}-{index + 1}"
    return PooledSwarm(file, config.model_copy(update={"name": name}))


def _upper(layer: Layer, index: int) -> Layer:
    """The layer that the pool's file puts on top of a configuration."""
    entry = section_of(layer, ("swarms", index))
    upper = section_of(layer, ("swarms", index, "overrides"))
    for key in ("name", "replicas"):
        if entry.values.get(key) is not None:
            upper.values[key] = entry.values[key]
            upper.places[key,] = entry.places[key,]
    return upper


def _duplicate_names(swarms: list[PooledSwarm], layer: Layer, path: Path) -> list[Mistake]:
    """A mistake for each swarm whose name an earlier swarm has."""
    first: Mapping[str, int] = {
        swarm.name: index for index, swarm in reversed(list(enumerate(swarms)))
    }
    return [
        Mistake(
            _place(layer, path, index, "name"),
            f"swarms.{index}.name",
            f"{swarm.name} is already the name of swarms.{first[swarm.name]}; give this one a name",
        )
        for index, swarm in enumerate(swarms)
        if first[swarm.name] != index
    ]


def _place(layer: Layer, path: Path, index: int, key: str = "") -> str:
    entry = layer.places.get(("swarms", index), str(path))
    return layer.places.get(("swarms", index, key), entry)
