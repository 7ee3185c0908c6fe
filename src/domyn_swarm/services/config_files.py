"""The operations of `init` and `config`: write a configuration or the defaults, check a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from domyn_swarm.config.defaults import asked_keys, defaults_text
from domyn_swarm.config.loading import LoadedConfig, defaults_path, load
from domyn_swarm.config.starter import json_schema, starter
from domyn_swarm.errors import ConfigError, Mistake
from domyn_swarm.model import Record
from domyn_swarm.paths import write_private
from domyn_swarm.record import field
from domyn_swarm.swarm.launch import prepare

__all__ = [
    "CheckRequest",
    "ConfigMistake",
    "ConfigReport",
    "NewDefaults",
    "NewFileRequest",
    "Setting",
    "asked_keys",
    "check_answers",
    "check_config",
    "defaults_place",
    "job_schema",
    "json_schema",
    "new_config",
    "new_defaults",
]

Platform = Literal["local", "slurm", "lepton"]


def job_schema(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of a job's file, for editors; see `job_file.json_schema`."""
    from domyn_swarm.swarm.job_file import json_schema as schema  # here: it imports all of `jobs`

    return schema(descriptions)


class NewFileRequest(Record):
    """A request to write a configuration or the defaults file."""

    platform: Platform
    flags: dict[str, str] = field(default_factory=dict)  # by dotted key
    overrides: tuple[str, ...] = ()  # `key=value`, as `--set` takes them
    output: Path | None = None  # of a configuration; None: it is not written to a file
    force: bool = False  # replace an existing file


class NewDefaults(Record):
    """The defaults file that was written."""

    schema_version: Literal[1] = 1
    path: Path
    platform: Platform
    settings: dict[str, str]  # the answers, by dotted key


class CheckRequest(Record):
    """A request to check a configuration."""

    config: Path
    overrides: tuple[str, ...] = ()


class ConfigMistake(Record):
    """One mistake in a configuration, and what to write instead."""

    source: str  # the file, or the flag
    line: int | None
    key: str | None  # dotted; None: the mistake does not concern a key
    message: str


class Setting(Record):
    """The value of one key, and its source."""

    key: str
    value: Any
    source: str  # `file:line`, a flag, `$VARIABLE`, or `built-in`


class ConfigReport(Record):
    """Whether a configuration is valid, as far as can be checked without starting anything."""

    schema_version: Literal[1] = 1
    config: Path
    valid: bool
    mistakes: tuple[ConfigMistake, ...] = ()
    settings: tuple[Setting, ...] = ()  # of a valid one


def new_config(request: NewFileRequest) -> str:
    """A valid, commented configuration. It is written to `output`, if that is set.

    Raises:
        ConfigError: a flag or override is invalid, or the file exists or cannot be written.
    """
    text = starter(request.platform, request.flags, request.overrides)
    if request.output is not None:
        _write(request.output, text, force=request.force)
    return text


def new_defaults(request: NewFileRequest) -> NewDefaults:
    """Write the defaults file.

    Raises:
        ConfigError: an answer is invalid, or the file exists or cannot be written.
    """
    path = defaults_place(force=request.force)
    text = defaults_text(request.platform, request.flags, request.overrides)
    try:
        write_private(path, text)
    except OSError as error:
        raise _unwritable(path, error) from error
    pairs = (override.partition("=") for override in request.overrides)
    settings = {**request.flags, **{key.strip(): value for key, _, value in pairs}}
    return NewDefaults(path=path, platform=request.platform, settings=settings)


def defaults_place(*, force: bool) -> Path:
    """The path of the defaults file.

    Raises:
        ConfigError: the file exists, and `force` is not set.
    """
    path = defaults_path()
    if path.exists() and not force:
        raise _exists(path)
    return path


def check_answers(platform: Platform, answers: Mapping[str, str]) -> tuple[Mistake, ...]:
    """The mistakes in the answers so far."""
    try:
        defaults_text(platform, answers)
    except ConfigError as error:
        return error.mistakes
    return ()


def check_config(request: CheckRequest) -> ConfigReport:
    """Check a configuration: its keys, its layout, and the options of its engine."""
    try:
        loaded = load(request.config, overrides=request.overrides)
        prepare(loaded.config)
    except ConfigError as error:
        mistakes = error.mistakes or [
            Mistake(str(request.config), "", str(error).replace("\n", " "))
        ]
        reported = tuple(map(_mistake, mistakes))
        return ConfigReport(config=request.config, valid=False, mistakes=reported)
    return ConfigReport(config=request.config, valid=True, settings=tuple(_settings(loaded)))


def _mistake(mistake: Mistake) -> ConfigMistake:
    source, colon, line = mistake.place.rpartition(":")
    numbered = bool(colon) and line.isdecimal()
    return ConfigMistake(
        source=source if numbered else mistake.place,
        line=int(line) if numbered else None,
        key=mistake.key or None,
        message=mistake.message,
    )


def _settings(loaded: LoadedConfig) -> Iterator[Setting]:
    values = loaded.config.model_dump(mode="json")
    for key, source in loaded.provenance.items():
        yield Setting(key=key, value=_at(values, key), source=source)


def _at(values: Any, key: str) -> Any:  # noqa: ANN401 - a configuration as JSON
    """The value at a dotted key, whose parts may contain dots themselves (names of options)."""
    if not isinstance(values, Mapping) or not key:
        return values
    name = next(name for name in values if f"{key}.".startswith(f"{name}."))
    return _at(values[name], key[len(str(name)) + 1 :])


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise _unwritable(path, error) from error


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists.", hint="Use --force to replace it.")


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror}.", hint="Choose another place.")
