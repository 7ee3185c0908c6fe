"""Which command takes which flags of jobs. Flags that set one key of a job's file are derived from
the records (see `flags`); the others are defined here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer
from typing_extensions import override

from domyn_swarm.cli.flags import (
    Flag,
    Typed,
    declared,
    descriptions,
    flags_of,
    temperature_of,
)
from domyn_swarm.cli.shared_options import ConfigOption, SwarmOption, parse_json_object
from domyn_swarm.jobs.run_options import ChangeableOptions
from domyn_swarm.swarm.job_keys import ResourceKeys
from domyn_swarm.swarm.job_request import Submission

if TYPE_CHECKING:
    from domyn_swarm.config.sources import Layer


def _here(_flag: str, _value: bool) -> str:
    return "here"


def _json(flag: str, text: str) -> dict[str, Any]:
    return parse_json_object(text, flag)


_PLACEMENTS = {
    "placement": declared(
        Annotated[
            Literal["step", "job"] | None,
            typer.Option("--placement", help=descriptions(ResourceKeys)["placement"].flag_help),
        ],
        "placement",
    ),
    "run_here": declared(
        Annotated[
            bool,
            typer.Option(
                "--run-here", help="Drive the endpoint from this machine, as a process of it."
            ),
        ],
        "placement",
        read=_here,
    ),
}
_RESOURCES = {**_PLACEMENTS, **flags_of(ResourceKeys), **_PLACEMENTS}
_OVER_ALL_RUNS = ("stop_after", "max_gpu_hours", "no_continue")
_ONE_RUN = {name: one for name, one in _RESOURCES.items() if name not in _OVER_ALL_RUNS}
_SUBMISSION = flags_of(Submission)
_WHERE = ("input", "output", "endpoint", "model")
_ASKED: dict[str, Flag] = {
    "prompt": declared(
        Annotated[
            str | None,
            typer.Option(
                "--prompt", metavar="TEMPLATE", help="What to ask, over the row's {{ columns }}."
            ),
        ],
        "prompt",
    ),
    "prompt_file": declared(
        Annotated[
            Path | None,
            typer.Option("--prompt-file", metavar="FILE", help="The same, as a file in UTF-8."),
        ],
        "prompt_file",
    ),
    "system": declared(
        Annotated[
            str | None, typer.Option("--system", metavar="TEMPLATE", help="The system message.")
        ],
        "system",
    ),
    "system_file": declared(
        Annotated[
            Path | None,
            typer.Option("--system-file", metavar="FILE", help="The same, as a file in UTF-8."),
        ],
        "system_file",
    ),
    "temperature": declared(
        Annotated[
            str | None,
            typer.Option("--temperature", metavar="NUMBER", help="Of each request; 0: no chance."),
        ],
        *("parameters", "temperature"),
        read=temperature_of,
    ),
    "max_tokens": declared(
        Annotated[
            int | None,
            typer.Option("--max-tokens", min=0, help="The longest answer, in tokens."),
        ],
        *("parameters", "max_tokens"),
    ),
    "job_kwargs": declared(
        Annotated[
            str | None,
            typer.Option(
                "--job-kwargs", metavar="JSON", help="Options of the job and its requests."
            ),
        ],
        "parameters",
        read=_json,
    ),
}


class JobFlags(Typed):
    """The flags that define a job: `job submit`, `job preview`."""

    flags: ClassVar = {
        "job": declared(
            Annotated[
                str | None,
                typer.Argument(metavar="[MODULE:CLASS]", help="The job; a chat job when left out."),
            ],
            "job",
        ),
        "file": declared(
            Annotated[
                Path | None,
                typer.Option(
                    "--file",
                    "-f",
                    metavar="FILE",
                    help="The job as YAML; flags beside it win over it.",
                ),
            ]
        ),
        "swarm": declared(SwarmOption, "swarm"),
        "config": declared(ConfigOption, "config"),
        **{name: _SUBMISSION[name] for name in _WHERE},
        **_ASKED,
        **_SUBMISSION,
        **_RESOURCES,
    }

    @property
    def file(self) -> Path | None:
        """The job's file."""
        file: Path | None = self.values["file"]
        return file

    @override
    def layer(self) -> Layer:
        """Requires an input and an output, or a file that may name them."""
        layer = super().layer()
        if self.file is None and not {"input", "output"} <= layer.values.keys():
            missing = "--output" if "input" in layer.values else "--input"
            raise typer.BadParameter(f"{missing} is missing, and no --file says it.")
        return layer


class ResumeFlags(Typed):
    """The settings that may change when a job is resumed: `job resume`."""

    flags: ClassVar = {**flags_of(ChangeableOptions), **_RESOURCES}


class ScriptFlags(Typed):
    """A program's name, and the resources it requests: `job submit-script`."""

    flags: ClassVar = {
        **{name: _SUBMISSION[name]._replace(key=()) for name in ("name", "down_after")},
        **_ONE_RUN,
    }


class RetryFlags(Typed):
    """The settings that may change when rows are retried, in one run: `job retry-failed`."""

    flags: ClassVar = {**flags_of(ChangeableOptions), **_ONE_RUN}


class LimitFlags(Typed):
    """The limits of a job, for all its runs together: `rehearse`."""

    flags: ClassVar = flags_of(ResourceKeys, "stop_after", "max_gpu_hours")


FLAGS = {name: flag.spelled for name, flag in JobFlags.flags.items() if name != "job"}
"""The flags of `job submit` by the names of their fields."""


def key_descriptions() -> dict[str, str]:
    """The description of each key of a job's file, from its record or its flag."""
    described = {**descriptions(Submission), **descriptions(ResourceKeys)}
    return {
        flag.key[0]: described[flag.key[0]].text if flag.key[0] in described else flag.help
        for name, flag in JobFlags.flags.items()
        if len(flag.key) == 1 and name != "run_here"
    }
