"""What lives on between requests: background tasks, and what the last one ends.

A background task runs beside the request that has started it, with its own thread. So
they share nothing that belongs to a thread. A `Local` is a thread-local in sync code:
what is kept in one, such as a cache with its connection, must not be used by two
threads at a time. And a request that ends must not close the caches of its task.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.cache import close_caches
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from trio_asgi.bridge.connections import tidy_up
from trio_asgi.errors import note_asyncio, reraise, split_ending
from trio_asgi.islands.context import restore_context, with_locals, without_locals
from trio_asgi.islands.loop import below_asyncio, end_tasks
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import HeldLog, log

from .closing import has_caches_to_close
from .errors import cleanup_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_asgi.asgi.lifespan import Lifespan

logger = logging.getLogger("trio_asgi")


def start_in_background(
    owner: object,
    lifespan: Lifespan,
    async_fn: Callable[..., Awaitable[Any]],
    args: tuple[Any, ...],
    name: object,
) -> None:
    """Start a task of `ASGIHandler.start_soon`.

    Args:
        owner: The application.
        lifespan: The application's, in which the task lives.
        async_fn: The function.
        args: Its arguments.
        name: The task's name.

    Raises:
        RuntimeError: outside the server's lifespan.
    """
    _task_context().run(
        lifespan.start_soon, _run_in_background, owner, async_fn, args, name=name
    )


def _task_context() -> contextvars.Context:
    """Return the context for a task that is started here.

    The values of context variables come along, as in a nursery, but no `Local` does,
    except for four of Django's that say nothing of a thread: language, time zone,
    URLconf and script prefix.
    """
    caller = contextvars.copy_context()
    context = without_locals(caller)
    # A `Local` of sync code, which may start tasks by way of `trio.from_thread`, shows
    # nothing in this thread before that.
    caller.run(restore_context, caller)
    context.run(
        _activate,
        language=caller.run(translation.get_language),
        zone=caller.run(timezone.get_current_timezone),
        urlconf=caller.run(get_urlconf),
        prefix=caller.run(get_script_prefix),
    )
    return context


def _activate(language: str | None, zone: Any, urlconf: Any, prefix: str) -> None:
    """Make these the current ones. None of them is loaded: they were in use."""
    if language is None:
        translation.deactivate_all()
    elif language != settings.LANGUAGE_CODE:
        translation.activate(language)
    if zone is not timezone.get_default_timezone():
        timezone.activate(zone)
    set_urlconf(urlconf)
    set_script_prefix(prefix)
    # It is a task of Trio's, whoever starts it.
    below_asyncio.set(False)


async def _run_in_background(
    owner: object, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> None:
    """Be the task, in a context of `_task_context`, with a thread of its own."""
    lease = current_pool().lease()
    lease.owner = owner
    if not lease.borrowed:
        # The connections of its thread may have been idle for long.
        lease.on_take = tidy_up
    current_loop.set(lease)
    async with HeldLog(cleanup_seconds):
        try:
            await async_fn(*args)
        except BaseException as error:  # noqa: BLE001 - raised again, or logged
            # Code that was cut short may have left something in the thread.
            lease.retire = True
            ending, failure = split_ending(error)
            try:
                if failure is not None:
                    note_asyncio(failure)
                    message = "A background task failed: %r"
                    log(logger, logging.ERROR, message, async_fn, error=failure)
                if ending is not None:
                    reraise(ending)
            finally:
                # Their tracebacks hold this frame: leave no cycle behind.
                del ending, failure
        finally:
            # What the end of a request does, for the caches and for the thread.
            last: Callable[[], object] | None = None
            if lease.has_thread:
                last = with_locals(_end)
            elif has_caches_to_close():
                last = with_locals(close_caches)
            lease.release(last=last)


def _end() -> None:
    """Close the task's caches, and leave a tidy thread. Worker thread."""
    try:
        close_caches()
    finally:
        tidy_up()


async def end_islands_and_threads(owner: object) -> None:
    """End what an application's requests and background tasks have left.

    The loop of asyncio and the pool belong to the run, and the program or another
    application may go on using them. Idle threads are nobody's.
    """
    await end_tasks(owner)
    await current_pool().retire_idle()
