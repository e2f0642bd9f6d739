"""Background tasks, and what ends at an application's shutdown.

A background task and the request that started it have different threads. So they must
not share a `Local`: it may hold a cache, with a connection that only one thread can use
at a time, and that the end of the request closes.
"""

from __future__ import annotations

import contextvars
import logging
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.cache import close_caches
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from trio_asgi import conf
from trio_asgi.bridge.connections import tidy_up
from trio_asgi.errors import note_asyncio, reraise, split_ending
from trio_asgi.islands.context import restore_context, with_locals, without_locals
from trio_asgi.islands.loop import end_tasks
from trio_asgi.threads.current import current_pool
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import HeldLog, log
from trio_asgi.threads.trio_state import below_asyncio

from .closing import has_caches_to_close

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
    """Start a task of `ASGIHandler.start_soon` in the lifespan of its application.

    Raises:
        RuntimeError: called outside the server's lifespan.
    """
    _task_context().run(
        lifespan.start_soon, _run_in_background, owner, async_fn, args, name=name
    )


def _task_context() -> contextvars.Context:
    """Return a copy of this context for a new task, in which each `Local` is empty.

    Except for four of Django's that do not depend on a thread.
    """
    caller = contextvars.copy_context()
    context = without_locals(caller)
    # Sync code may start tasks through `trio.from_thread`. Without this its `Local`
    # would show nothing in this thread.
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
    """Make these current. That loads nothing, since they were in use."""
    if language is None:
        translation.deactivate_all()
    elif language != settings.LANGUAGE_CODE:
        translation.activate(language)
    if zone is not timezone.get_default_timezone():
        timezone.activate(zone)
    set_urlconf(urlconf)
    set_script_prefix(prefix)
    # It is a Trio task, even if asyncio code starts it.
    below_asyncio.set(False)


async def _run_in_background(
    owner: object, async_fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
) -> None:
    """Run the task, with its own thread, in the context of `_task_context`."""
    lease = current_pool().lease()
    lease.owner = owner
    if not lease.borrowed:
        # The connections of its thread may have been idle for a long time.
        lease.on_take = tidy_up
    current_loop.set(lease)
    async with HeldLog(lambda: conf.get("CLEANUP_SECONDS")):
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
            # Caches and thread, as at the end of a request.
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
    """End the asyncio tasks that an application left behind, and all idle threads.

    The asyncio loop and the pool belong to the Trio run: the program or another
    application may go on using them.
    """
    await end_tasks(owner)
    await current_pool().retire_idle()
