"""The page about Python, made from signatures, docstrings and comments, so that it cannot go stale.

A hook of MkDocs, as `reference.py`.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from typing import is_typeddict

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import domyn_swarm
from domyn_swarm import DomynLLMSwarm, SubmittedJob, SwarmJob, job
from domyn_swarm.batch.outcomes.row_outcomes import RowError
from domyn_swarm.cli.flags import descriptions
from domyn_swarm.jobs import keywords, run_options
from domyn_swarm.jobs.builtin.prompted import PromptedJob
from domyn_swarm.jobs.dry_run import RowFailure
from domyn_swarm.jobs.forecasting import Choice, JobForecast
from domyn_swarm.jobs.preview import Preview, PreviewedRow, RestEstimate
from domyn_swarm.jobs.progress_display import SettledRow
from domyn_swarm.model import JobAccount, JobStatus
from domyn_swarm.net import parameters
from domyn_swarm.record import Record
from domyn_swarm.services.report_records import JobReport
from domyn_swarm.swarm.job_request import Submission, SubmitKeywords
from domyn_swarm.swarm.snapshot import JobSnapshot, ReplicaSnapshot, SwarmSnapshot

PAGE = "reference/python.md"
_TABLES = {
    "Options of every job": keywords.OptionKeywords,
    "Output columns of every job": keywords.OutputKeywords,
    "Jobs with a prompt": keywords.ShapedPromptKeywords,
    "Options of run": keywords.RunKeywords,
    "Options of submit_job": SubmitKeywords,
}
_SHARED = [one for one in vars(run_options).values() if is_typeddict(one)]
"""Keywords beside the records that they are of, whose words are theirs."""
_SAID = {name: one.text for name, one in descriptions(Submission).items()}
_OF_ALL = (keywords.OutputKeywords, keywords.ShapedPromptKeywords)
_COLUMNS = {*keywords.OutputKeywords.__annotations__, "input_columns"}
_RECORDS = (
    SwarmSnapshot,
    ReplicaSnapshot,
    JobSnapshot,
    JobAccount,
    JobReport,
    Preview,
    PreviewedRow,
    RowFailure,
    RestEstimate,
    JobForecast,
    Choice,
    SettledRow,
    RowError,
)
_APIS = {
    "chat": parameters.CHAT,
    "completions": parameters.COMPLETIONS,
    "embeddings": parameters.EMBEDDINGS,
}
_LINKED = {
    **{kind.__name__: title.lower().replace(" ", "-") for title, kind in _TABLES.items()},
    **{kind.__name__: kind.__name__.lower() for kind in _RECORDS},
    **{name: name.lower() for name in domyn_swarm.__all__ if name != "__version__"},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page; called by MkDocs once a build."""
    files.append(File.generated(config, PAGE, content=python_page()))
    return files


def python_page() -> str:
    """Every public class, function, argument and option."""
    lines = [
        "# Python reference",
        "",
        "All of these can be imported from `domyn_swarm`: "
        + ", ".join(_link(name) for name in _names())
        + ". How they go together: [Use it from Python](../python.md), "
        "[Writing jobs](../writing-jobs.md).",
        "",
        "What goes wrong is raised as a `SwarmError`, with `.message` and `.hint`; its kinds are",
        "[here](errors.md). A configuration (`DomynLLMSwarmConfig`) has the [keys](keys.md) of a",
        "file; `DomynLLMSwarmConfig.read(PATH)` reads one.",
        "",
    ]
    for kind in (DomynLLMSwarm, SubmittedJob, SwarmJob):
        lines += _class(kind)
    lines += ["## job", "", *_code("@job", inspect.signature(job)), *_prose(job)]
    for title, kind in _TABLES.items():
        lines += [f"## {title}", "", *_prose(kind), *_table(kind)]
    lines += _requests()
    lines += ["## Built-in jobs", ""]
    for name in _names():
        kind = getattr(domyn_swarm, name)
        if isinstance(kind, type) and issubclass(kind, SwarmJob) and kind is not SwarmJob:
            lines += [f"### {name}", "", *_prose(kind), *_own_arguments(kind)]
    lines += ["## What comes back", ""]
    for kind in _RECORDS:
        lines += [f"### {kind.__name__}", "", *_prose(kind), *_table(kind)]
    states = ", ".join(f"`{one.value}`" for one in JobStatus)
    lines += ["### JobStatus", "", *_prose(JobStatus), f"Each is text: {states}.", ""]
    return "\n".join(lines)


def _names() -> list[str]:
    return [name for name in domyn_swarm.__all__ if not name.startswith("_")]


def _class(kind: type) -> Iterator[str]:
    """A class with its own public members, in the order of its source."""
    yield from (f"## {kind.__name__}", "", *_prose(kind))
    if kind is SwarmJob:
        yield from ("What a class of yours may set, and what it has:", "", *_table(kind))
    for name, member in vars(kind).items():
        if name.startswith("_") or (kind is SwarmJob and name not in ("run", "arun")):
            continue
        owner = "swarm" if kind is DomynLLMSwarm else "job"
        if isinstance(member, property):
            yield from (f"### .{name}", "", *_prose(member))
        elif isinstance(member, classmethod):
            yield from (f"### {kind.__name__}.{name}", "")
            yield from _code(f"{kind.__name__}.{name}", inspect.signature(getattr(kind, name)))
            yield from _prose(member)
        elif inspect.isfunction(member):
            signature = inspect.signature(member)
            arguments = list(signature.parameters.values())[1:]
            yield from (f"### .{name}()", "")
            yield from _code(f"{owner}.{name}", signature.replace(parameters=arguments))
            yield from _prose(member)


def _code(name: str, signature: inspect.Signature) -> Iterator[str]:
    """A call as it is written, an argument a line where there are many."""
    taken = list(signature.parameters.values())
    arguments = [_argument(one) for one in taken]
    starred = [one.kind is one.KEYWORD_ONLY for one in taken]
    if True in starred:
        arguments.insert(starred.index(True), "*")
    returned = signature.return_annotation
    ending = "" if returned is signature.empty else f" -> {_plain(returned)}"
    line = f"{name}({', '.join(arguments)}){ending}"
    if len(line) > 90:
        line = f"{name}(\n" + "".join(f"    {one},\n" for one in arguments) + f"){ending}"
    yield from ("```python", line, "```", "")


def _argument(one: inspect.Parameter) -> str:
    stars = {one.VAR_KEYWORD: "**", one.VAR_POSITIONAL: "*"}.get(one.kind, "")
    default = "" if one.default is one.empty else f" = {one.default!r}"
    return f"{stars}{one.name}: {_plain(one.annotation)}{default}"


def _plain(annotation: object) -> str:
    return re.sub(r"Unpack\[(\w+)\]", r"\1", str(annotation))


def _prose(thing: object) -> Iterator[str]:
    """A docstring, with its lists of arguments and errors as lists."""
    listed = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        title = re.fullmatch(r"(Args|Raises|Returns):", line)
        entry = re.fullmatch(r" {4}([\w*, ]+): (.*)", line) if listed else None
        if title:
            listed = True
            words = {"Args": "Arguments", "Raises": "Raises", "Returns": "Returns"}
            yield from (f"**{words[title[1]]}**", "")
        elif entry:
            yield f"- `{entry[1]}`: {_linked(entry[2])}"
        else:
            listed = listed and (line.startswith(" ") or not line)
            yield _linked(line if not listed else f"  {line.strip()}".rstrip())
    yield ""


def _linked(text: str) -> str:
    return re.sub(r"`(\w+)`", lambda found: _link(found[1]), text)


def _link(name: str) -> str:
    own = name not in ("DomynLLMSwarmConfig", "SwarmError")  # they are on other pages
    return f"[`{name}`](#{_LINKED[name]})" if name in _LINKED and own else f"`{name}`"


def _table(kind: type) -> Iterator[str]:
    """The fields of a class with their types, and what is written below or beside them."""
    yield from ("| | type | |", "|---|---|---|")
    fields = [*_with_shared(kind)]
    if kind is keywords.OutputKeywords:  # names for the columns stand in a class by themselves
        fields += _fields(keywords.NamedKeywords)
    for name, annotation, what in fields:
        shown = re.sub(r"\s+", " ", annotation).replace("|", "\\|")
        words = what or (_SAID.get(name, "") if is_typeddict(kind) else "")
        yield f"| `{name}` | `{shown}` | {_linked(words)} |"
    yield ""


def _with_shared(kind: type) -> Iterator[tuple[str, str, str]]:
    """The same, behind those that it shares with other keywords, or has of other records."""
    tree = ast.parse(inspect.getsource(kind))
    bases = tree.body[0].bases if isinstance(tree.body[0], ast.ClassDef) else []
    for one in bases:
        base = vars(sys.modules[kind.__module__]).get(ast.unparse(one))
        if base in _SHARED or base in Record.__subclasses__():
            yield from _with_shared(base)
    yield from _fields(kind)


def _fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """Name, type, and what is said of it: a docstring below, or a comment on its lines."""
    source = inspect.getsource(kind)
    tree = ast.parse(source)
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    for node, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        if node.target.id.startswith("_"):
            continue
        last = (node.end_lineno or node.lineno) - 1
        comment = source.splitlines()[last][node.end_col_offset or 0 :].partition("# ")[2]
        below = following.value if isinstance(following, ast.Expr) else None
        said = below.value if isinstance(below, ast.Constant) else comment
        yield node.target.id, ast.unparse(node.annotation), " ".join(str(said).split())


def _requests() -> Iterator[str]:
    yield from ("## Parameters of requests", "")
    yield from _prose(keywords.RequestKeywords)
    for api, known in _APIS.items():
        yield from (f"- {api}: " + ", ".join(f"`{name}`" for name in sorted(known)),)
    yield ""


def _own_arguments(kind: type[SwarmJob]) -> Iterator[str]:
    """What a job takes besides what others take, too."""
    prompted = issubclass(kind, PromptedJob)
    known = set().union(*(one.__annotations__ for one in _OF_ALL)) if prompted else {*_COLUMNS}
    known |= {*keywords.OptionKeywords.__annotations__, "parameters"}
    own = [one for name, one in kind.__signature__.parameters.items() if name not in known]
    if own:
        yield from ("| argument | type | default |", "|---|---|---|")
    for one in own:
        annotation = _plain(one.annotation).replace("|", "\\|")
        yield f"| `{one.name}` | `{annotation}` | `{one.default!r}` |"
    links = {
        "what [jobs with a prompt](#jobs-with-a-prompt) take": prompted,
        "[output columns](#output-columns-of-every-job)": True,
        "the [options of every job](#options-of-every-job)": True,
        "[parameters of its requests](#parameters-of-requests)": True,
    }
    besides = "; ".join(link for link, there in links.items() if there)
    yield from ("", f"{'Besides' if own else 'It takes'}: {besides}.", "")
