"""A job as a file: the flags of `job submit` as YAML. Flags beside it take precedence.

Files and flags become one layer, which is checked as a configuration is: all mistakes at once, each
with its line or flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ValidationInfo

from domyn_swarm.batch.output.manifest import is_secret
from domyn_swarm.config.mistakes import config_error, validated
from domyn_swarm.config.sources import FileKind, Key, Layer, dotted, merge, read_yaml
from domyn_swarm.errors import ConfigError, Mistake
from domyn_swarm.jobs.builtin.prompts import PromptTemplate
from domyn_swarm.jobs.job_loading import load_job, located
from domyn_swarm.jobs.run_options import ChangeableOptions
from domyn_swarm.net import parameters
from domyn_swarm.paths import expanded
from domyn_swarm.planning.plan import JobResources
from domyn_swarm.record import Record, field
from domyn_swarm.swarm.job_keys import ChangeKeys, ResourceKeys, resources_of
from domyn_swarm.swarm.job_request import CHAT_JOB, JobChanges, JobRequest, Submission

_TEMPLATE_JOB = "domyn_swarm.jobs:TemplateJob"
_OUR_JOBS = "domyn_swarm.jobs:"
_Keys = TypeVar("_Keys", bound=Record)
_EITHER = (("prompt", "prompt_file"), ("system", "system_file"), ("swarm", "config", "endpoint"))
"""Keys that exclude each other: each of them replaces what a lower layer says of the others."""
_PATHS = ("input", "output", "checkpoint_dir", "config", "prompt_file", "system_file")
_OF_THE_COMMAND = "it is a flag of the command and no part of the job"
JOB = FileKind(
    name="job",
    example="input: rows.parquet",
    reference="`domyn-swarm config schema --job` prints every key with its meaning.",
    opaque=frozenset({"parameters", "backend_read_kwargs", "backend_write_kwargs"}),
    instead={
        **dict.fromkeys(parameters.CHAT | {"extra_body"}, "it belongs under parameters"),
        **dict.fromkeys(("detach", "no_progress", "dry_run", "yes"), _OF_THE_COMMAND),
        "job_kwargs": "write parameters",
        "job_name": "write name",
        "input_column": "write input_columns",
        "output_column": "write output_columns",
        "timeout": "write timeout_s",
        "time": "write time_limit",
        "run_here": "write placement: here",
        "no_resume": "write resume: false",
        "no_checkpointing": "write checkpointing: false",
    },
)


def prompt_text(path: Path) -> str:
    """The content of a prompt's file, including its last line break, without a byte order mark.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8; save it as UTF-8") from None


def _of_endpoint(model: str | None, info: ValidationInfo) -> str | None:
    if model is not None and info.data.get("endpoint") is None:
        raise ValueError("goes with endpoint; a swarm's model is that of its configuration")
    return model


def _template(text: str | None, info: ValidationInfo) -> str | None:
    if text is not None:
        _check_template(text, str(info.field_name), info)
    return text


def _template_file(path: Path | None, info: ValidationInfo) -> Path | None:
    if path is not None:
        what = str(info.field_name).removesuffix("_file")
        _check_template(prompt_text(path), what, info)
    return path


class JobFile(Submission, ResourceKeys):
    """The contents of a job's file. `parameters` are the job's options and those of its
    requests.
    """

    config: Path | None = None  # of the swarm, instead of its name
    model: Annotated[str | None, AfterValidator(_of_endpoint)] = None
    prompt: Annotated[str | None, AfterValidator(_template)] = None
    prompt_file: Annotated[Path | None, AfterValidator(_template_file)] = None
    system: Annotated[str | None, AfterValidator(_template)] = None
    system_file: Annotated[Path | None, AfterValidator(_template_file)] = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def request(self, *, detached: bool, folder: Path | None = None) -> JobRequest:
        """The request to submit. `folder` is that of the file, in which its module may be.

        Raises:
            ConfigError: the swarm's configuration, or a prompt's file, cannot be used.
        """
        texts = {"prompt": self.prompt, "system": self.system}
        for name, path in (("prompt", self.prompt_file), ("system", self.system_file)):
            texts[name] = texts[name] if path is None else prompt_text(path)
        given = {name: text for name, text in texts.items() if text is not None}
        same = set(self.field_names()) & set(JobRequest.field_names())
        known = self.model_dump(include=same)
        if self.job == CHAT_JOB and "prompt" in given:
            known["job"] = _TEMPLATE_JOB
        if self.config is not None:
            from domyn_swarm.config import swarm_name  # here: few jobs name a configuration

            known["swarm"] = swarm_name(self.config)
        return JobRequest(
            **known,
            job_kwargs={**self.parameters, **given},
            import_folder=folder,
            resources=resources_of(self, detached=detached),
        )


def _check_template(text: str, what: str, info: ValidationInfo) -> None:
    if not str(info.data.get("job", CHAT_JOB)).startswith(_OUR_JOBS):
        return  # the meaning is known to the user's own class only
    try:
        PromptTemplate(text, what)
    except ConfigError as error:
        raise ValueError(f"{error.message} {error.hint}".rstrip()) from None


def read_job(path: Path | None, flags: Layer, *, detached: bool = False) -> JobRequest:
    """The job of a file and of the flags beside it; `path` is None if there is no file.

    Paths in the file are relative to its folder, those of flags to the current one.

    Raises:
        ConfigError: every mistake at once, each at its line or flag.
    """
    layer = layer_of(path, flags)
    if path is None:
        return _of_flags(JobFile, layer, "job submit").request(detached=detached)
    job = JobFile.of_model(validated(JobFile.pydantic_model(), layer, path, JOB))
    request = job.request(detached=detached, folder=path.absolute().parent)
    _check_job(request, layer, path)
    return request


def read_changes(flags: Layer, *, command: str, detached: bool) -> JobChanges:
    """The changes that a command's flags make to a job that runs again.

    Raises:
        ConfigError: every mistake at once, each at its flag.
    """
    keys = _of_flags(ChangeKeys, flags, command)
    changed = keys.model_dump(include=ChangeableOptions.field_names())
    return JobChanges(**changed, resources=resources_of(keys, detached=detached))


def read_resources(flags: Layer, *, command: str, detached: bool) -> JobResources:
    """The resources that a command's flags request.

    Raises:
        ConfigError: every mistake at once, each at its flag.
    """
    return resources_of(_of_flags(ResourceKeys, flags, command), detached=detached)


def _of_flags(kind: type[_Keys], flags: Layer, command: str) -> _Keys:
    reference = f"`domyn-swarm {command} --help` shows what it takes."
    known = replace(JOB, reference=reference)
    return kind.of_model(validated(kind.pydantic_model(), flags, Path(command), known))


def layer_of(path: Path | None, flags: Layer) -> Layer:
    """The keys of a file and of the flags beside it, not checked yet.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping.
    """
    lower = Layer() if path is None else read_yaml(path, JOB)
    _locate(lower, None if path is None else path.absolute().parent)
    _locate(flags, None)
    lower.mistakes += [*_secrets(lower), *_excluded(lower)]
    flags.mistakes += _excluded(flags)
    return merge(_without_replaced(lower, flags), flags)


def _locate(layer: Layer, folder: Path | None) -> None:
    """Resolve paths: `~` is the home; without a `folder` relative paths stay relative."""
    for key in _PATHS:
        value = layer.values.get(key)
        if isinstance(value, str) and "://" not in value:
            path = expanded(value)
            layer.values[key] = str(path if folder is None else folder / path)


def _secrets(layer: Layer) -> Iterator[Mistake]:
    """The keys that look like secrets, at any depth; those of the first level are removed."""
    for key in _secret_keys(layer.values):
        yield Mistake(
            layer.places.get(key, ""),
            dotted(key),
            "looks like a secret, and files of jobs are for sharing: a swarm's key is known, that "
            "of an --endpoint is $DOMYN_SWARM_API_TOKEN or $OPENAI_API_KEY of your shell",
        )
    layer.values = {name: one for name, one in layer.values.items() if not is_secret(name)}


def _secret_keys(values: Any, at: Key = ()) -> Iterator[Key]:  # noqa: ANN401 - YAML
    inner = values.items() if isinstance(values, Mapping) else ()
    items = enumerate(values) if isinstance(values, list) else inner
    for name, value in items:
        if isinstance(name, str) and is_secret(name):
            yield (*at, name)
        else:
            yield from _secret_keys(value, (*at, name))


def _excluded(layer: Layer) -> Iterator[Mistake]:
    for group in _EITHER:
        said = [name for name in group if layer.values.get(name) is not None]
        if said[1:]:
            place, key = layer.places[said[-1],], said[-1]
            flags = [layer.places[one,] for one in said]
            names = flags if all(one.startswith("--") for one in flags) else said
            yield Mistake(place, key, f"{' and '.join(names)} exclude each other")


def _without_replaced(lower: Layer, upper: Layer) -> Layer:
    """The lower layer without keys that the upper one replaces by another; parameters are replaced
    one by one.
    """
    gone = {
        name for group in _EITHER for name in group if not upper.values.keys().isdisjoint(group)
    }
    if not upper.values.keys().isdisjoint(("swarm", "config")):
        gone.add("model")
    values = {name: value for name, value in lower.values.items() if name not in gone}
    for name in JOB.opaque & upper.values.keys() & values.keys():
        if isinstance(values[name], Mapping):
            said = upper.values[name]
            values[name] = {one: value for one, value in values[name].items() if one not in said}
    return Layer(values, lower.places, lower.mistakes)


def _check_job(request: JobRequest, layer: Layer, path: Path) -> None:
    """Refuse parameters that the job's class does not accept, at the place where they are
    written.
    """
    try:
        found = located(request.job, request.job_kwargs, request.import_folder)
        load_job(
            found.reference,
            request.job_kwargs,
            input_columns=request.input_columns,
            output_columns=request.output_columns,
            import_path=found.import_path,
        )
    except ConfigError as error:
        if not error.mistakes:
            raise ConfigError(f"{path}: {error.message}", hint=error.hint) from error
        placed = []
        for one in error.mistakes:
            key: Key = ("parameters", one.key)
            place = layer.places.get(key, layer.places.get(key[:1], str(path)))
            placed.append(Mistake(place, dotted(key), one.message))
        raise config_error(placed, path, JOB) from error


def json_schema(descriptions: Mapping[str, str]) -> dict[str, Any]:
    """The JSON Schema of a job's file, for editors.

    Args:
        descriptions: of the keys.
    """
    from domyn_swarm.config.starter import DIALECT, loosen  # here: a submission needs none of it

    schema = JobFile.model_json_schema()
    loosen(schema)
    for key, described in schema["properties"].items():
        if key in descriptions:
            described["description"] = descriptions[key]
    return {"$schema": DIALECT, **schema, "title": "A job of domyn-swarm"}
