"""What works on asyncio alone, and what to write instead."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

#: Modules and classes that need asyncio. Libraries on AnyIO, such as httpx, do not. A
#: name that a project's own app might have is not here, but a module below it.
_NEED_ASYNCIO: Final = (
    *("aio_pika", "aioboto3", "aiobotocore", "aiocache", "aiofiles", "aiohttp"),
    *("aiokafka", "aiomysql", "aiopg", "aioredis", "aiosmtplib", "aiosqlite"),
    *("arq.connections", "asyncmy", "asyncpg", "channels_redis", "databases.core"),
    *("elasticsearch._async", "grpc.aio", "motor.motor_asyncio", "nats.aio"),
    *("opensearchpy._async", "psycopg.AsyncConnection", "pymongo.asynchronous"),
    *("psycopg_pool.AsyncConnectionPool", "redis.asyncio", "sqlalchemy.ext.asyncio"),
    *("uvloop", "valkey.asyncio", "websockets.asyncio", "websockets.legacy"),
)

_PACKAGES: Final = {name.partition(".")[0] for name in _NEED_ASYNCIO}

#: Functions of asyncio that work without its loop.
HARMLESS: Final = {
    *("iscoroutine", "iscoroutinefunction", "isfuture"),
    # As types; none of them is made by calling it.
    *("AbstractEventLoop", "AbstractServer"),
}

_ROUTINES: Final = (FunctionType, BuiltinFunctionType, MethodType)

#: What does the same on Trio.
ON_TRIO: Final = {
    "aiohttp": "httpx",
    "asyncio.Event": "trio.Event",
    "asyncio.Lock": "trio.Lock",
    "asyncio.Queue": "trio.open_memory_channel",
    "asyncio.Semaphore": "trio.Semaphore",
    "asyncio.TaskGroup": "trio.open_nursery",
    "asyncio.as_completed": "trio.open_nursery",
    "asyncio.create_task": "trio.open_nursery, or trio_asgi.start_soon,",
    "asyncio.ensure_future": "trio.open_nursery",
    "asyncio.gather": "trio.open_nursery",
    "asyncio.shield": "trio.CancelScope(shield=True)",
    "asyncio.sleep": "trio.sleep",
    "asyncio.timeout": "trio.fail_after",
    "asyncio.to_thread": "sync_to_async",
    "asyncio.wait": "trio.open_nursery",
    "asyncio.wait_for": "trio.fail_after",
}


def needs_asyncio(value: Any) -> str:
    """Return the name of what needs asyncio; empty if this value does not.

    The value is a class, a function, or an object that a module holds: a client, say.
    """
    # By its type, and not by attributes that a lazy object would compute.
    kind = type(value)
    if issubclass(kind, ModuleType):
        return library_of(value.__name__)
    if issubclass(kind, _ROUTINES):
        return _needed_by(value)
    if issubclass(kind, type):
        kind = value
    if issubclass(kind, BaseException):
        return ""  # to be caught
    return next(filter(None, map(_needed_by, kind.__mro__)), "")


def _needed_by(named: Any) -> str:
    module, name = named.__module__ or "", named.__qualname__
    if module.partition(".")[0] in {"asyncio", "_asyncio"}:
        return "" if name in HARMLESS else f"asyncio.{name}"
    return library_of(f"{module}.{name}")


def library_of(name: str) -> str:
    """Return the library that needs asyncio and has a module or class of this name."""
    if name.partition(".")[0] not in _PACKAGES:
        return ""
    found = (one for one in _NEED_ASYNCIO if f"{name}.".startswith(f"{one}."))
    return next(found, "")
