"""Where tasks and threads are: their frames, and the line to show of them.

Nothing is recorded while the code runs. Only a look walks through what is there.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import sys
import sysconfig
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

import django
import trio

from trio_asgi.hosts.asyncio_calls import HostLoop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

#: Folders of Python, of installed packages and of their scripts; and of packages that
#: a developer may have as a checkout.
_LIBRARIES: Final = tuple(
    f"{folder}{os.sep}"
    for folder in (
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        sysconfig.get_path("scripts"),
        Path(__file__).parents[1],
        Path(django.__file__).parent,
        Path(trio.__file__).parent,
    )
)

#: Packages whose functions only pass on what others have called.
_BENEATH: Final = frozenset(
    {"asgiref", "asyncio", "outcome", "sniffio", "trio", "trio_asgi", "trio_asyncio"}
)

#: The prefix of the attributes of each kind of coroutine, and where the next one is.
_KINDS: Final = (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await"))
_TYPES: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)


@functools.cache
def is_project_file(filename: str) -> bool:
    """Whether a file is part of the project, and of no installed package."""
    return not (
        filename.startswith(("<", *_LIBRARIES))
        or "site-packages" in filename
        or "dist-packages" in filename
    )


@functools.cache
def short_path(filename: str) -> str:
    """Return a file's path below the folder from which Python imports it."""
    folders = [str(Path(folder).absolute()) + os.sep for folder in sys.path]
    found = [folder for folder in folders if filename.startswith(folder)]
    return filename.removeprefix(max(found, key=len, default=""))


def package_of(frame: FrameType) -> str:
    """Return the name of the package, or module, at the top of a frame's module."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def describe_frame(frame: FrameType) -> str:
    """Return a frame's file, line and function: ``"shop/views.py:17 in prices"``."""
    name = frame.f_code.co_name
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno} in {name}"


def place_of(frames: Sequence[FrameType]) -> str | None:
    """Return where code is: its innermost line in the project, or else in a package.

    None if there is only code of Python, Trio and this package.
    """
    innermost_first = frames[::-1]
    for frame in innermost_first:
        if is_project_file(frame.f_code.co_filename):
            return describe_frame(frame)
    for frame in innermost_first:
        package = package_of(frame)
        if package not in _BENEATH and package not in sys.stdlib_module_names:
            return describe_frame(frame)
    return None


def frames_of_stack(frame: FrameType | None) -> list[FrameType]:
    """Return a running frame and those that have called it, the outermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames[::-1]


def frames_of_task(task: trio.lowlevel.Task) -> list[FrameType]:
    """Return the frames of a task that does not run now, the outermost first.

    If the task waits for an asyncio task, the frames of that follow. Trio thread.
    """
    frames: list[FrameType] = []
    waits = _waits_for_asyncio()
    awaited: Any = task.coro
    while awaited is not None:
        inner = None
        for frame in _frames_of(awaited):
            if frame in frames:  # an object refers back to a coroutine that awaits it
                break
            frames.append(frame)
            if frame.f_code in waits:
                future = frame.f_locals.get("future")
                if isinstance(future, asyncio.Task):
                    inner = inspect.unwrap(future.get_coro())  # type: ignore[arg-type]
        awaited = inner
    return frames


def _frames_of(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a suspended coroutine, as far as Python shows them.

    `trio.lowlevel.Task.iter_await_frames` raises for objects that it does not know.
    """
    while awaited is not None:
        for kind, inner in _KINDS:
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, inner)
                break
        else:
            # What is between an object with ``__await__`` and its coroutine, or between
            # ``async for`` and its generator, has no attribute that leads there.
            inside = gc.get_referents(awaited)
            # Not isinstance(), which would evaluate a lazy object.
            awaited = next((one for one in inside if type(one) in _TYPES), None)


def _waits_for_asyncio() -> set[Any]:
    """Return the code of the functions in which a Trio task waits for a ``future``."""
    codes = {HostLoop.run_aio_future.__code__}
    trio_asyncio = sys.modules.get("trio_asyncio")
    if trio_asyncio is not None:
        codes.add(trio_asyncio.run_aio_future.__code__)
    return codes
