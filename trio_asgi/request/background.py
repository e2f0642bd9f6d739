"""Background tasks, and what ends at an application's shutdown.

A background task and the request that started it have different threads. So they must
not share a `Local`: it may hold a cache, with a connection that only one thread can use
at a time, and that the end of the request closes.
"""

from __future__ import annotations

import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.cache import close_caches
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

# A private name: it makes the errors of `trio.Nursery.start_soon`.
from trio._util import coroutine_or_error

from trio_asgi import conf
from trio_asgi.asgi.lifespan import current_owner, running
from trio_asgi.bridge.connections import tidy_up
from trio_asgi.errors import note_asyncio, reraise, split_ending
from trio_asgi.islands.context import restore_context, with_locals, without_locals
from trio_asgi.islands.loop import end_tasks
from trio_asgi.threads.current import current_pool, sensitive_loop
from trio_asgi.threads.lease import lease_of
from trio_asgi.threads.loop import current_loop
from trio_asgi.threads.offload import HeldLog, log
from trio_asgi.threads.trio_state import below_asyncio, in_trio_run

from .closing import has_caches_to_close

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_asgi.asgi.lifespan import Lifespan

logger = logging.getLogger("trio_asgi")


def start_soon(
    async_fn: Callable[..., Awaitable[Any]],
    *args: Any,
    name: object = None,
    on_commit: bool = False,
    using: str | None = None,
) -> None:
    """Start a task that may outlive the request, as `trio.Nursery.start_soon` does.

    Call it in the requests and background tasks of an application, in async or sync
    code, signal receivers and middleware included, in tasks that the application's
    ``lifespan()`` has started, and in any other code of a process that runs one
    application.

    The task has its own thread for sync code, and its own connections and caches. It
    gets the values of context variables, but not those of an asgiref `Local` or of a
    `threading.local`, except for the language, the time zone, the URLconf and the
    script prefix: pass the rest as arguments. So it does not belong to a transaction
    that is open here.

    If the task fails, the error is logged, and no other task is cancelled. At shutdown
    it may run for ``TRIO_ASGI["SHUTDOWN_SECONDS"]``, then it is cancelled.

    Any thread. Outside the Trio thread, it waits until the task has been started.

    Args:
        async_fn: An async function.
        args: Its positional arguments.
        name: The task's name, for logs; None: the function's.
        on_commit: Whether to wait for the commit of the transaction in which this is
            called, if there is one. If that is rolled back, the task never starts. It
            is `django.db.transaction.on_commit`, called in the thread of the request.
        using: The alias of the database of that transaction; None: the default one.

    Raises:
        RuntimeError: no application of this process has a nursery, because the server
            has sent no ``lifespan.startup`` or is shutting down; or there are several,
            and this code belongs to none.
        TypeError: from Trio; ``async_fn`` is not an async function.
    """
    loop = current_loop.get()
    owner = None if loop is None else lease_of(loop).owner
    owner = owner or current_owner.get()
    if owner is None:
        found = list(running)
        if len(found) != 1:
            raise RuntimeError(_NO_APPLICATION if not found else _SEVERAL_APPLICATIONS)
        [owner] = found
    application: Any = owner
    application.start_soon(async_fn, *args, name=name, on_commit=on_commit, using=using)


_NO_APPLICATION: Final = (
    "start_soon() found no application with a nursery: the server has sent no "
    "lifespan.startup, or is shutting down. Use a server with lifespan support, or in "
    "a test trio_asgi.testing.lifespan() or the fixture asgi_lifespan. Or start the "
    "task in a nursery of your own."
)
_SEVERAL_APPLICATIONS: Final = (
    "start_soon() was called outside the requests and tasks of an application, and "
    "this process has several. Call the method start_soon() of one of them."
)


class BackgroundTask:
    """A task of `start_soon` that has not begun yet. Any thread.

    Raises:
        TypeError: from Trio; it is not an async function.
    """

    def __init__(
        self,
        owner: object,
        lifespan: Lifespan,
        async_fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        name: object,
    ) -> None:
        self._lifespan = lifespan
        self._context = _task_context()
        # What Trio would do in the task: its errors are for the caller.
        coro: Any = self._context.run(coroutine_or_error, async_fn, *args)
        self._task: tuple[Any, ...] | None = (owner, async_fn, coro)
        self._name = name or async_fn

    def start(self) -> None:
        """Start it.

        Raises:
            RuntimeError: there is no nursery.
        """
        assert self._task is not None, "started once"
        self._lifespan.start_soon(
            self._context, _run_in_background, *self._task, name=self._name
        )
        self._task = None

    def __del__(self) -> None:
        """Close a coroutine that was not started, as after a rollback."""
        if (task := getattr(self, "_task", None)) is not None:
            task[-1].close()

    def start_on_commit(self, using: str | None) -> None:
        """Start it when the transaction of the calling code is committed."""
        register = functools.partial(self._register, using)
        if not in_trio_run():
            register()
            return
        # The transaction is in the thread. A block of another task is not the caller's.
        loop = sensitive_loop()
        turns = loop.innermost()
        if turns.block is None:
            if not loop.post(register):
                self.start()
        elif turns is loop and loop.parent is None:
            self.start()
        else:
            # That block is inside the caller's, or below sync code with a transaction.
            turns.block.at_end.append(lambda: loop.open and loop.post(register))

    def _register(self, using: str | None) -> None:
        """Start it when this thread's transaction is committed, or now. Any thread."""
        connection = connections[using or DEFAULT_DB_ALIAS]
        if connection.connection is None and not connection.in_atomic_block:
            self.start()  # to ask Django would open the connection
        else:
            transaction.on_commit(self.start, using, robust=True)


def _task_context() -> contextvars.Context:
    """Return a copy of this context for a new task, in which each `Local` is empty.

    Except for four of Django's that do not depend on a thread.
    """
    caller = contextvars.copy_context()
    context = without_locals(caller)
    if in_trio_run():
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
    owner: object, async_fn: Callable[..., Awaitable[Any]], coro: Awaitable[Any]
) -> None:
    """Run the task, with its own thread, in the context of `_task_context`."""
    lease = current_pool().background_lease()
    lease.owner = owner
    if not lease.borrowed:
        # The connections of its thread may have been idle for a long time.
        lease.on_take = tidy_up
    current_loop.set(lease)
    async with HeldLog(lambda: conf.get("CLEANUP_SECONDS")):
        try:
            await coro
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
