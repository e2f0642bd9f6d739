"""What runs in this process: requests, their tasks, worker threads, connections.

Requests and threads record nothing for this. A snapshot walks through Trio's tree of
tasks, and knows functions of this package by their frames.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, Final

import trio

from .asgi.exchange import Exchange
from .asgi.receive import Receiver
from .asgi.send import ResponseSender
from .debugging.frames import frames_of_task, place_of
from .debugging.threads import Stacks
from .handler import ASGIHandler
from .islands.functions import _run_on_asyncio
from .request.background import _run_in_background
from .request.state import send_answer
from .threads.abandon import name_of
from .threads.current import current_pool
from .threads.host import Host
from .threads.loop import CallLoop, current_loop
from .threads.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from trio.lowlevel import Task

    from .threads.call import Call
    from .threads.pool import WorkerPool


def _code(function: Any) -> Any:
    return inspect.unwrap(function).__code__


_HANDLES: Final = _code(ASGIHandler.handle)
_BACKGROUND: Final = _code(_run_in_background)
_WATCHES: Final = _code(Exchange._watch)
_ISLAND: Final = _code(_run_on_asyncio)
_HOSTS_CALL: Final = _code(Host.host)
_IN_TRIO_THREAD: Final = _code(trio.to_thread.run_sync)
_WAITS_FOR_BODY: Final = _code(Receiver._wait_news)

_STREAMS: Final = _code(send_answer)
_ASYNC_BELOW_SYNC: Final = _code(Host._work_for)

#: What a task does that waits in one of these functions.
_WAITS: Final = {
    _code(method): "reading the body"
    for method in vars(Receiver).values()
    if inspect.iscoroutinefunction(method)
} | {
    _HOSTS_CALL: "waiting for a thread",
    _code(CallLoop._wait_turn): "waiting for a thread",
    _code(Slot.acquire): "waiting for a thread",
    _code(ResponseSender._pass_on): "sending to a client that does not read",
}


def snapshot() -> dict[str, Any]:
    """Return what runs in this process now, as objects that JSON knows.

    The request or background task that calls is left out. :doc:`/reference/tasks`
    explains the keys. Call it in a Trio task. It takes no thread, and is no checkpoint.

    Raises:
        RuntimeError: Trio does not run here.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return _Snapshot().take(root, current_pool())


class _Snapshot:
    """One snapshot while it is being taken. Used by one call of `snapshot`."""

    def __init__(self) -> None:
        self._stacks = Stacks()
        #: The request or background task to which each task belongs.
        self._whose: dict[Task, str] = {}
        self._islands = 0

    def take(self, root: Task, pool: WorkerPool) -> dict[str, Any]:
        requests: list[dict[str, Any]] = []
        background: list[dict[str, Any]] = []
        for task in _descendants(root):
            # Of the running task there is only the outermost frame.
            frames = frames_of_task(task)
            while frames and frames[0].f_code not in (_HANDLES, _BACKGROUND):
                del frames[0]
            if not frames or self._asks(frames[0]):
                continue
            if frames[0].f_code is _HANDLES:
                requests.append(self._request(task, frames))
            else:
                background.append(self._task(task, frames, whose=task.name))
        threads = self._stacks.of_pool(pool, self._caller)
        return {
            "pid": os.getpid(),
            "requests": sorted(requests, key=lambda one: -one["seconds"]),
            "background": background,
            "threads": threads,
            "counts": {
                "requests": len(requests),
                "tasks": len(self._whose),
                "islands": self._islands,
                **_counts(pool, threads),
            },
        }

    def _asks(self, frame: FrameType) -> bool:
        """Whether a request or background task asks for the snapshot, by its frame."""
        loop = current_loop.get()
        return loop is not None and frame.f_locals.get("lease") is loop.lease

    def _request(self, task: Task, frames: list[FrameType]) -> dict[str, Any]:
        names = frames[0].f_locals
        scope, state = names["scope"], names.get("state")
        nurseries = task.child_nurseries
        if state is None:
            nurseries = []
            seconds = _waited(names["receiver"], frames)
        else:
            # Without those around the handler, which are the server's.
            own = state._nursery
            nurseries = nurseries[nurseries.index(own) :] if own in nurseries else []
            seconds = trio.current_time() - state.began_at
        whose = f"{scope['method']} {scope['path']}"
        node = self._task(task, frames, whose=whose, nurseries=nurseries)
        del node["name"]
        return {
            "method": scope["method"],
            "path": scope["path"],
            "seconds": round(seconds, 3),
            **node,
        }

    def _task(
        self,
        task: Task,
        frames: list[FrameType],
        *,
        whose: str,
        nurseries: Iterable[trio.Nursery] | None = None,
    ) -> dict[str, Any]:
        """Describe a task, and those in the nurseries that it has opened."""
        self._whose[task] = whose
        self._islands += any(frame.f_code is _ISLAND for frame in frames)
        state, where = self._state(frames)
        inner = []
        for nursery in task.child_nurseries if nurseries is None else nurseries:
            for child in sorted(nursery.child_tasks, key=lambda one: one.name):
                theirs = frames_of_task(child)
                if theirs and theirs[0].f_code is not _WATCHES:
                    inner.append(self._task(child, theirs, whose=whose))
        return {"name": task.name, "state": state, "where": where, "tasks": inner}

    def _state(self, frames: list[FrameType]) -> tuple[str, str | None]:
        """Return what a task does, and where."""
        for index in reversed(range(len(frames))):
            frame = frames[index]
            code = frame.f_code
            if code is _HOSTS_CALL and (call := frame.f_locals["self"]).begun:
                return "in sync code", place_of(self._stacks.calls.get(call, []))
            if code in _WAITS:
                return _WAITS[code], place_of(frames[:index])
            if code is _IN_TRIO_THREAD:
                return "in sync code", name_of(frame.f_locals["sync_fn"])
            if code is _STREAMS:
                return "streaming", place_of(frames)
            if code is _ASYNC_BELOW_SYNC:
                break
        return "in async code", place_of(frames)

    def _caller(self, call: Call[Any]) -> str | None:
        """Return the request or background task that has made a call, if any has."""
        task = call._task[0]
        return None if task is None else self._whose.get(task)


def _descendants(task: Task) -> Iterator[Task]:
    """Yield a task and all below it."""
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _descendants(child)


def _waited(receiver: Receiver, frames: Iterable[FrameType]) -> float:
    """Return for how many seconds a body was waited for."""
    now = trio.current_time()
    for frame in frames:
        if frame.f_code is _WAITS_FOR_BODY:
            return receiver._waited + now - float(frame.f_locals.get("begun", now))
    return receiver._waited


def _counts(pool: WorkerPool, threads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is used of a pool's limits, and what waits for it."""
    slots, used, waiting = pool.slots, 0, 0
    if slots is not None:
        used, waiting = slots.borrowed_tokens, slots.statistics().tasks_waiting
    states = [thread["state"] for thread in threads]
    return {
        "threads": len(threads),
        "busy_threads": states.count("busy"),
        "held_threads": len(states) - states.count("idle"),
        "waiting_calls": pool.queue.waiting + waiting,
        "places": pool.queue.threads,
        "used_places": pool.queue.running,
        "slots": None if slots is None else slots.total_tokens,
        "used_slots": used,
        "connections": sum(len(thread["connections"]) for thread in threads),
    }
