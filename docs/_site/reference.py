"""Pages of the site that are made from the code, so that they cannot go stale.

A hook of MkDocs: it adds the pages to the files of a build, nothing is written beside the sources.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from prometheus_client.core import Metric
from typer.core import TyperCommand

from domyn_swarm import engines, errors, paths
from domyn_swarm.backends.endpoint.endpoint_spec import EndpointSpec
from domyn_swarm.backends.endpoint.metrics import Readings
from domyn_swarm.backends.endpoint.router import RouterFigures
from domyn_swarm.backends.endpoint.use_meter import FollowedJob
from domyn_swarm.backends.endpoint.view import CollectorView
from domyn_swarm.backends.ledger import ledgers_dir
from domyn_swarm.cli.app import COMMANDS
from domyn_swarm.cli.command_tree import LazyGroup, build
from domyn_swarm.cli.job_flags import FLAGS, key_descriptions
from domyn_swarm.config.models import DomynLLMSwarmConfig
from domyn_swarm.model import JobProgress, ReplicaReport, ReplicaState
from domyn_swarm.paths import JobPaths, SwarmPaths
from domyn_swarm.services.config_files import job_schema

Command = TyperCommand | LazyGroup


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; called by MkDocs once a build."""
    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


# -- commands ------------------------------------------------------------------------------------


def options_page() -> str:
    """Every command with its arguments and options, as `--help` tells them."""
    lines: list[str] = []
    listed = ["| command | |", "|---|---|"]
    for entry in sorted(COMMANDS):
        root = build(entry.name, entry.place)
        for path, command in _commands(root, f"domyn-swarm {entry.name}"):
            context = command.context_class(command, info_name=path)
            lines += [f"## {path}", "", "```text", command.get_help(context).strip(), "```", ""]
            about = command.get_short_help_str(limit=200).replace("|", "\\|")
            listed.append(f"| [`{path}`](#{path.replace(' ', '-')}) | {about} |")
    page = ["# Every option", "", "As `domyn-swarm COMMAND --help` prints it.", "", *listed, ""]
    return "\n".join([*page, *lines])


def _commands(command: Command, path: str) -> Iterator[tuple[str, Command]]:
    if not isinstance(command, LazyGroup):
        yield path, command
        return
    for name in sorted(command.commands):
        yield from _commands(command.built(name), f"{path} {name}")


# -- configuration -------------------------------------------------------------------------------


def keys_page() -> str:
    """Every key of a configuration file: type, default, what it does, by section."""
    schema = DomynLLMSwarmConfig.model_json_schema()
    sections = {"DomynLLMSwarmConfig": schema, **schema.get("$defs", {})}
    lines = [
        "# Every key",
        "",
        "Of a configuration file, by section. What the sections are for stands in",
        "[Configuration](../configuration.md).",
        "",
    ]
    for name, section in sections.items():
        if "properties" not in section:
            continue
        lines += [f"## {name}", "", section.get("description", "").split("\n\n")[0], ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        required = set(section.get("required", ()))
        for key, field in section["properties"].items():
            default = "required" if key in required else _default(field)
            what = field.get("description", "").replace("\n", " ")
            lines.append(f"| `{key}` | {_type(field)} | {default} | {what} |".replace("  ", " "))
        lines.append("")
    return "\n".join(lines)


def job_keys_page() -> str:
    """Every key of a job's file: the flag that says the same, type, what it does."""
    lines = [
        "# Every key of a job's file",
        "",
        "As `job submit -f FILE` takes it; see [Keep a job in a file](../how-to/job-files.md).",
        "",
        "| key | flag | type | |",
        "|---|---|---|---|",
    ]
    descriptions = key_descriptions()
    fields = job_schema(descriptions)["properties"]
    for key in (one for one in descriptions if one in fields):
        flag, what = FLAGS.get(key, ""), descriptions[key].replace("|", "\\|")
        lines.append(f"| `{key}` | {flag and f'`{flag}`'} | {_type(fields[key])} | {what} |")
    return "\n".join([*lines, ""])


def _default(field: dict[str, Any]) -> str:
    if field.get("default") in (None, {}, [], ""):
        return ""
    return f"`{field['default']}`" if not isinstance(field["default"], dict) else ""


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            names = [_type(one) for one in field[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(names))
    if isinstance(field.get("type"), list):  # text of any look
        return "text"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    words = {"string": "text", "integer": "whole number", "object": "mapping", "boolean": "yes/no"}
    return words.get(field.get("type", ""), field.get("type", "anything"))


# -- errors ------------------------------------------------------------------------------------


def errors_page() -> str:
    """Every kind of error with the exit code it ends a command with."""
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.SwarmError) and kind is not errors.SwarmError
    ]
    lines = [
        "# Errors and what to do",
        "",
        "Each is printed as one message (`error: …`: what is wrong, and where) and a hint",
        "(`hint: …`: what to do next). The exit code tells scripts of which kind it is. Often seen",
        "messages, with causes: [When something goes wrong](../troubleshooting.md).",
        "",
        "| exit code | error | what it says |",
        "|---|---|---|",
    ]
    for kind in sorted(kinds, key=lambda kind: (kind.exit_code, kind.__mro__[1].__name__)):
        meaning = " ".join((inspect.getdoc(kind) or "").split())
        lines.append(f"| {kind.exit_code} | `{kind.__name__}` | {meaning} |")
    return "\n".join([*lines, ""])


def causes_page() -> str:
    """What every engine's log is searched for when it has ended."""
    lines = [
        "# Causes of death",
        "",
        "When an engine has ended, the end of its log is searched for these. After a cause that",
        "may pass the engine is started again; for the others that cannot help: it stays down.",
        "",
    ]
    for name in engines.names():
        lines += [f"## {name}", "", "| cause | what to do | tried again |", "|---|---|---|"]
        for one in engines.get(name).failure_patterns:
            lines.append(f"| {one.cause} | {one.hint} | {'yes' if one.retryable else 'no'} |")
        lines.append("")
    return "\n".join(lines)


# -- metrics ----------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every family that a swarm tells Prometheus, as the code that tells it has it."""
    lines = [
        "# Metrics",
        "",
        "What a swarm tells Prometheus. How to scrape it: [monitoring](../monitoring.md).",
        "",
        "| metric | kind | labels | |",
        "|---|---|---|---|",
    ]
    for family in _families():
        suffix = "_total" if family.type == "counter" else ""
        labels = ", ".join(f"`{label}`" for label in _labels(family))
        about = family.documentation
        lines.append(f"| `{family.name}{suffix}` | {family.type} | {labels} | {about} |")
    return "\n".join([*lines, ""])


def _families() -> Iterator[Metric]:
    now = datetime.now(UTC)
    report = ReplicaReport(replica=0, state=ReplicaState.READY, incarnation="", sequence=0)
    progress = JobProgress(state="running", updated_at=now)
    required = {"tag": "", "host": "", "port": None, "replicas": 1, "stale_after_s": 1.0}
    required |= {"health_path": "/", "policy": "", "max_concurrent": 1, "queue_size": 1}
    required |= {"retries": 0, "tls_cert": None, "tls_key": None}
    required |= {"api_key_file": "key", "collector_key_file": "key"}
    yield from Readings(
        swarm="",
        spec=EndpointSpec.model_validate(required),
        replicas_wanted=1,
        view=CollectorView(replicas=(report,), taken_at=now, stale_after_s=1.0),
        router=RouterFigures({}, {}, {}, {}),
        jobs=(FollowedJob(job_id="", progress=progress),),
    ).collect()


def _labels(family: Metric) -> tuple[str, ...]:
    """Known to the library's classes of families, by a name that it keeps to itself."""
    names: tuple[str, ...] = family._labelnames
    return names


# -- files -------------------------------------------------------------------------------------


def files_page() -> str:
    """Every file and folder, with what it holds."""
    swarm = paths.SwarmPaths(Path("<home_directory>/swarms/<name>"))
    job = paths.JobPaths(Path("<home_directory>/swarms/<name>/jobs/<id>"))
    lines = [
        "# Files on disk",
        "",
        "Folders are 0700, keys are 0600. `home_directory` is `$DOMYN_SWARM_HOME` unless the",
        "configuration says otherwise.",
        "",
        "| path | what |",
        "|---|---|",
        f"| `$DOMYN_SWARM_HOME/swarm.db` | {_summary(paths.database_path)} |",
        f"| `$DOMYN_SWARM_HOME/checkpoints/` | {_summary(paths.checkpoints_dir)} |",
        f"| `$DOMYN_SWARM_HOME/ledger/` | {_summary(ledgers_dir)} |",
    ]
    lines += _paths_of(swarm)
    return "\n".join([*lines, *_paths_of(job), ""])


def _paths_of(value: SwarmPaths | JobPaths) -> Iterator[str]:
    numbers = {
        "replica": "<replica>",
        "rank": "<rank>",
        "tag": "<tag>",
        "job_id": "<id>",
        "job": "<job>",
        "task": "<n>",
        "kind": "<endpoint or replica>",
    }
    for name, member in vars(type(value)).items():
        if isinstance(member, property):
            yield f"| `{getattr(value, name)}` | {_summary(member.fget)} |"
        elif inspect.isfunction(member) and not name.startswith("_"):
            names = list(inspect.signature(member).parameters)[1:]
            place = member(value, *(numbers[one] for one in names))
            yield f"| `{getattr(place, 'root', place)}` | {_summary(member)} |"


def _summary(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


PAGES: dict[str, Callable[[], str]] = {
    "reference/options.md": options_page,
    "reference/keys.md": keys_page,
    "reference/job-keys.md": job_keys_page,
    "reference/errors.md": errors_page,
    "reference/causes.md": causes_page,
    "reference/files.md": files_page,
    "reference/metrics.md": metrics_page,
}
