"""Runs work beside a run: the work ends with the run, and its failure is the run's."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


@asynccontextmanager
async def beside(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run work while the body runs; work that has not ended by then is cancelled.

    An error of the work cancels the body and is raised in its place; an error of the body itself
    has precedence.
    """
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
            try:
                yield
            except Exception as error:
                failure = error
                raise
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as failures:
        failure = failure or failures.exceptions[0]
    if failure is not None:
        raise failure


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As `asyncio.to_thread`, but never returns before the thread has finished.

    A cancellation is raised once the function has ended: no file is still being written when the
    caller continues. An exception of the function has precedence, and a caller that catches it is
    cancelled where it waits next.
    """
    work = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:  # a cancellation was pending already
                continue
        if running.exception() is not None:
            _cancel_later()
            running.result()
        raise


def _cancel_later() -> None:
    """Cancel this task where it waits next, in place of the delivered cancellation. The canceller
    waits for the task's end, which would not come if the task caught the error and continued.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        task.uncancel()
        task.cancel()
