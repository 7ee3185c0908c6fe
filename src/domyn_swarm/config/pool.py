"""A pool file: several swarms, each by its own configuration and what differs from it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from domyn_swarm.config.backends import Section
from domyn_swarm.config.loading import load
from domyn_swarm.config.mistakes import config_error, validated
from domyn_swarm.config.models import DomynLLMSwarmConfig, check_name
from domyn_swarm.config.sources import Layer, read_yaml, section_of
from domyn_swarm.errors import ConfigError, Mistake
from domyn_swarm.paths import expanded

_NAME_CHARACTERS = 35  # so that `NAME-1234` is a swarm's name
Name = Annotated[str, AfterValidator(check_name)]


class PoolMember(Section):
    """One swarm of a pool."""

    config: str = Field(min_length=1, description="its configuration; relative to the pool's file")
    name: Name | None = Field(None, description="empty: as its configuration says, else POOL-1, …")
    replicas: int | None = Field(None, ge=1, description="empty: as its configuration says")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="keys of a configuration that differ here"
    )


def _some(members: tuple[PoolMember, ...]) -> tuple[PoolMember, ...]:
    if not members:
        raise ValueError("must list at least one swarm, such as [{config: swarm.yaml}]")
    return members


Members = Annotated[tuple[PoolMember, ...], AfterValidator(_some)]


class PoolConfig(Section):
    """Several swarms that come and go together."""

    name: Annotated[Name, Field(max_length=_NAME_CHARACTERS)] = Field(description="of the pool")
    swarms: Members = Field(description="its swarms")
    max_parallel: int = Field(4, ge=1, le=64, description="how many come up at once")


@dataclass(frozen=True)
class PooledSwarm:
    """One swarm with everything that holds for it; its configuration has a name."""

    path: Path
    config: DomynLLMSwarmConfig

    @property
    def name(self) -> str:
        """By which it is found again: the same in every reading of the file."""
        return str(self.config.name)


@dataclass(frozen=True)
class Pool:
    """A valid pool file."""

    name: str
    max_parallel: int
    swarms: tuple[PooledSwarm, ...]


def load_pool(path: Path) -> Pool:
    """The pool in a file, with the configurations that it names.

    Raises:
        ConfigError: every mistake in all of these files at once, each at its file and line.
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
    mistakes += _taken_twice(swarms, layer, path) if not mistakes else []
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
    found = load(file, upper=_upper(layer, index)).config
    name = found.name or f"{pool.name}-{index + 1}"
    return PooledSwarm(file, found.model_copy(update={"name": name}))


def _upper(layer: Layer, index: int) -> Layer:
    """What the pool says over a configuration."""
    entry = section_of(layer, ("swarms", index))
    upper = section_of(layer, ("swarms", index, "overrides"))
    for key in ("name", "replicas"):
        if entry.values.get(key) is not None:
            upper.values[key] = entry.values[key]
            upper.places[key,] = entry.places[key,]
    return upper


def _taken_twice(swarms: list[PooledSwarm], layer: Layer, path: Path) -> list[Mistake]:
    """Two swarms of one name could not be told apart."""
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
