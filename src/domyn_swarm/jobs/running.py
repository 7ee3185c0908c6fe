"""Runs a job in this process: a frame in, a frame of the same kind out.

The same engine, checkpoint and resume as for a submitted job; only the ends differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from domyn_swarm import __version__, open_files
from domyn_swarm.batch.background import beside
from domyn_swarm.batch.checkpoint.job_store import frame_key
from domyn_swarm.batch.input.reading import InputReading, reading_of
from domyn_swarm.batch.outcomes.tally import Tally
from domyn_swarm.batch.run.engine import BatchPlan, BatchRun
from domyn_swarm.config.environment import checked_endpoint, key_of_environment
from domyn_swarm.errors import ConfigError, SwarmError, interrupted
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.ends import ends_of
from domyn_swarm.jobs.job_loading import import_path_of, job_given, reference_to
from domyn_swarm.jobs.keywords import RunKeywords
from domyn_swarm.jobs.naming import OPTIONS
from domyn_swarm.jobs.preparation import check_rows, plan_of
from domyn_swarm.jobs.progress_display import (
    HookEvents,
    Hooks,
    Progress,
    ProgressDisplay,
    progress_display,
)
from domyn_swarm.jobs.worker_program import access_of, event_loop
from domyn_swarm.jobs.worker_spec import JobSpec, new_job_id
from domyn_swarm.logs import get_logger
from domyn_swarm.model import verdicts_named
from domyn_swarm.net.openai import OpenAIClient
from domyn_swarm.paths import checkpoints_dir, private_dir, write_private

_log = get_logger(__name__)
_T = TypeVar("_T")
_DRAW_S = 0.5
_KINDS = {int: Integral, Path: os.PathLike}  # other values that count as this type


def _accepted_types(hint: Any) -> tuple[type, ...]:  # noqa: ANN401 - a type
    """The types of values that a keyword accepts, as far as `isinstance` can tell."""
    several = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    return tuple(_KINDS.get(one, get_origin(one) or one) for one in several)


_TAKEN = {name: _accepted_types(hint) for name, hint in get_type_hints(RunKeywords).items()}
_NAMES = {NoneType: "None", Integral: "int", os.PathLike: "Path", Mapping: "dict", Sequence: "list"}


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of `run`, besides the job's own options: see `RunKeywords`."""

    tag: str | None = None
    checkpoint: bool = True
    checkpoint_dir: str | Path | None = None
    resume: bool = True
    retry_failed: bool = False
    retry_class: str | Sequence[str] = ()
    limit: int | None = None
    progress: bool = True
    reading: InputReading = field(default_factory=InputReading)
    hooks: Hooks = field(default_factory=Hooks)


def settings_of(given: dict[str, Any]) -> RunSettings:
    """Settings and hooks by their names.

    Raises:
        ConfigError: there is none of that name, or it does not accept the value.
    """
    heard, read = {one.name for one in fields(Hooks)}, {*InputReading.field_names()}
    for name in given.keys() - _TAKEN.keys():
        raise ConfigError(f"run takes no {name!r}.", hint=_instead(name, {*_TAKEN}))
    for name, value in given.items():
        taken = _TAKEN[name]
        if not (isinstance(value, taken) and (type(value) is not bool or bool in taken)):
            kinds = " or ".join(_NAMES.get(one, one.__name__) for one in taken)
            raise ConfigError(
                f"run({name}={value!r}): {name} is {kinds}.",
                hint="help(RunKeywords) in domyn_swarm.jobs.keywords says what each setting is.",
            )
    hooks = Hooks(**{name: value for name, value in given.items() if name in heard})
    reading = reading_of({name: value for name, value in given.items() if name in read})
    chosen = {name: value for name, value in given.items() if name not in heard | read}
    return RunSettings(**chosen, reading=reading, hooks=hooks)


def _instead(name: str, known: set[str]) -> str:
    """The hint for a name that is not a setting of a run."""
    of_jobs = {*OPTIONS, "input_columns", "output_schema", "output_columns"}
    if close := get_close_matches(name, sorted(known | of_jobs), 1):
        [meant] = close
        return (
            f"Did you mean {meant!r}?"
            if meant in known
            else f"{meant} is an option of the job: job({meant}=...)."
        )
    takes = f"It takes {', '.join(sorted(known))}."
    return f"{takes} Parameters of requests are the job's: job({name}=...)."


@dataclass(frozen=True)
class Endpoint:
    """The endpoint: the fields of a job's spec that describe it, and a key that stays in memory."""

    fields: Mapping[str, Any]
    key: str | None = None

    @classmethod
    def at(cls, url: str, model: str, api_key: str | None) -> Endpoint:
        """Any OpenAI endpoint; without a key, that of the environment.

        Raises:
            ConfigError: the URL is invalid.
        """
        return cls(
            {"endpoint_url": checked_endpoint(url), "model": model}, api_key or key_of_environment()
        )


async def arun(
    job: SwarmJob | str,
    data: Any,  # noqa: ANN401 - a frame or a path
    endpoint: Endpoint,
    settings: RunSettings,
    tally: Tally | None = None,
) -> Any:  # noqa: ANN401 - a frame
    """Send every row of a frame, or of the files at a path; returns a frame of the same kind.

    Rows without an answer have an `_error`. When cancelled, it finishes the rows in flight and
    keeps all settled rows. `tally` holds the counts meanwhile.

    Raises:
        SwarmError: the job or the data is invalid (nothing was sent), or the run cannot continue
            (settled rows are kept).
    """
    job = job_given(job)
    job.check()
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_files.raised())
        opening = ends_of(data, settings.limit, job.lines, settings.reading)
        ends = await asyncio.to_thread(stack.enter_context, opening)
        root = stack.enter_context(_checkpoint_root(settings, shared=ends.elsewhere))
        spec = _spec(job, endpoint, settings, str(root), ends.name)
        if ends.elsewhere:
            _check_hooks(settings.hooks)
            spec = stack.enter_context(_travelling(spec, job, endpoint))
        plan = await asyncio.to_thread(plan_of, spec, job, ends.dataset)
        if not isinstance(data, str | Path):
            key = await asyncio.to_thread(frame_key, plan.dataset, plan.output.keys)
            spec = spec.model_copy(update={"job_key": key})
        # The returned frame has all rows: each needs a result.
        key = spec.job_key or plan.job_key
        plan = replace(plan, job_key=key, no_others=False, publishes=False)
        await asyncio.to_thread(check_rows, job, plan)
        plan.output.check_names(ends.dataset)
        async with ends.workers(spec) as workers:
            plan = replace(plan, workers=workers)
            counted = Tally() if tally is None else tally
            await _settle(job, spec, endpoint, plan, settings, tally=counted)
        kept = plan.folder if settings.checkpoint else None
        return await asyncio.to_thread(ends.collect, spec, plan, kept)


@contextlib.contextmanager
def _checkpoint_root(settings: RunSettings, *, shared: bool) -> Iterator[Path]:
    """The folder of the checkpoint. `shared`: other machines have access to folders that users
    chose.
    """
    chosen = Path(settings.checkpoint_dir or checkpoints_dir())
    if settings.checkpoint:
        yield chosen
        return
    existed = chosen.exists()
    with tempfile.TemporaryDirectory(
        prefix="domyn-swarm-", dir=private_dir(chosen) if shared else None
    ) as scratch:
        yield Path(scratch)
    if shared and not existed:
        chosen.rmdir()


@contextlib.contextmanager
def _travelling(spec: JobSpec, job: SwarmJob, endpoint: Endpoint) -> Iterator[JobSpec]:
    """The spec with everything that other machines need: the job by name or source, the key in a
    file.
    """
    found = reference_to(job)
    fields: dict[str, Any] = {
        "job": found.job,
        "job_source": found.source,
        "job_kwargs": found.kwargs,
        "import_path": import_path_of("" if found.source else found.job, found.kwargs),
    }
    root = private_dir(Path(spec.checkpoint_root))
    with tempfile.TemporaryDirectory(prefix="key-", dir=root) as folder:
        if endpoint.key:
            fields["api_key_file"] = str(Path(folder) / "api_key")
            write_private(Path(folder) / "api_key", endpoint.key)
        yield JobSpec.model_validate({**spec.model_dump(), **fields})


def _check_hooks(hooks: Hooks) -> None:
    for name in ("on_batch", "on_row_error"):
        if getattr(hooks, name) is not None:
            raise ConfigError(
                f"{name} does not fire for a Ray Dataset: its rows never come to this process.",
                hint="Use on_progress, or look at the results.",
            )


def run(job: SwarmJob | str, data: Any, endpoint: Endpoint, settings: RunSettings) -> Any:  # noqa: ANN401 - a frame
    """As `arun`, for code that is not async, also in a notebook.

    Raises:
        KeyboardInterrupt: it was interrupted; the message says what is kept.
    """
    tally = Tally()
    try:
        return in_a_loop(lambda: arun(job, data, endpoint, settings, tally))
    except KeyboardInterrupt:
        raise interrupted(_kept(tally, settings)) from None
    except SwarmError as error:  # the message is complete without a traceback
        raise error.with_traceback(None) from None


def _kept(tally: Tally, settings: RunSettings) -> str:
    """What an interrupted run has kept, as text."""
    if not settings.checkpoint:
        return "Interrupted: nothing is kept (checkpoint=False). The same call sends all rows."
    if not tally.rows_done:
        return "Interrupted before a row was answered. The same call starts again."
    of_all = "" if tally.rows_total is None else f" of {tally.rows_total}"
    rows = "row is" if tally.rows_done == 1 and not of_all else "rows are"
    return (
        f"Interrupted: {tally.rows_done}{of_all} {rows} done and kept. "
        "The same call sends only the rest."
    )


def in_a_loop(begin: Callable[[], Coroutine[None, None, _T]]) -> _T:
    """What a coroutine comes to, for code that is not async. In a notebook, where a loop runs
    already, it runs on another one beside it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with event_loop() as runner:
            return runner.run(begin())
    return _in_a_thread(begin)


def _in_a_thread(begin: Callable[[], Coroutine[None, None, _T]]) -> _T:
    outcome: list[Callable[[], _T]] = []
    task: list[Callable[[], object]] = []
    started = threading.Event()

    async def watched() -> _T:
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        if current is not None:
            task.append(lambda: loop.call_soon_threadsafe(current.cancel))
        started.set()
        return await begin()

    def work() -> None:
        try:
            with event_loop() as runner:
                value = runner.run(watched())
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            outcome.append(functools.partial(_raise, error))
        else:
            outcome.append(lambda: value)

    thread = threading.Thread(target=work, name="domyn-swarm-run")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        started.wait()
        for cancel in task:
            cancel()
        thread.join()
        raise
    return outcome[0]()


def _raise(error: BaseException) -> Any:  # noqa: ANN401 - it never returns
    raise error


def _spec(
    job: SwarmJob, endpoint: Endpoint, settings: RunSettings, root: str, data: str
) -> JobSpec:
    classes = verdicts_named(settings.retry_class)
    fields = {
        "job_id": new_job_id(),
        "name": job.options.name or job.label,
        "job": job.label,
        "input": data if "://" in data or data.startswith("<") else str(Path(data).absolute()),
        "output": "",
        "checkpoint_root": str(Path(root).absolute()),
        "checkpoint_tag": settings.tag,
        "resume": settings.resume,
        "retry_failed": settings.retry_failed or bool(classes),
        "retry_classes": classes,
        "limit": settings.limit,
        "min_version": __version__,
    }
    return JobSpec.model_validate({**fields, **endpoint.fields})


async def _settle(
    job: SwarmJob,
    spec: JobSpec,
    endpoint: Endpoint,
    plan: BatchPlan,
    settings: RunSettings,
    *,
    tally: Tally,
) -> None:
    events = HookEvents(settings.hooks)
    display = progress_display(shown=settings.progress)
    work = replace(plan.work, notice=display.notice)
    batch = BatchRun(replace(plan, work=work), tally, events)
    events.stop = batch.stop
    access = access_of(spec)
    access = replace(access, key=endpoint.key or access.key)

    def transform(client: OpenAIClient) -> Callable[[list[Any]], Awaitable[Sequence[Any]]]:
        job.bind(client, spec.model)
        return job.transform_items

    try:
        async with beside(_keep_drawing(display, tally, spec.name)):
            await until_over(asyncio.ensure_future(batch.run(access, transform)), batch)
    finally:
        display.end(_progress(tally, spec.name))
        for remark in job.remarks(tally.all_verdicts):
            display.notice(remark)
        await batch.keep_account(spec.job_id, ended=True)
    events.raise_failure()


async def _keep_drawing(display: ProgressDisplay, tally: Tally, name: str) -> None:
    """Show the progress until cancelled."""
    while True:
        await asyncio.sleep(_DRAW_S)
        tally.look()
        display.draw(_progress(tally, name))


def _progress(tally: Tally, name: str) -> Progress:
    return Progress(
        name,
        tally.rows_done,
        tally.rows_total,
        resumed=tally.rows_resumed,
        failed=tally.all_failed,
        verdicts=tally.all_verdicts,
        rows_per_s=tally.rows_per_s(),
        left=tally.time_left(),
        remark=tally.paused or tally.remark,
    )


async def until_over(running: asyncio.Future[bool], batch: BatchRun) -> None:
    """Wait; a cancellation is passed on only when the rows in flight are settled."""
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        batch.stop()
        await running
        raise
