"""Wrap Django's functions, and print which requests call the wrapper.

``django|early|late wrapper|code`` prints, as JSON, the paths of the requests that
called each function: under Django's own handler, or on Trio, replaced before or after
the import of this package. The replacement is a wrapper, or other code in the same
function, as some tools do it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import tempfile
from types import FunctionType
from typing import Any

import django
from asgiref.sync import iscoroutinefunction
from django.conf import settings

#: Module and qualified name. `handle` and others that use asyncio are left out; so is
#: asgiref's `__call__`, on top of which `install` refuses to go.
NAMES = [
    "django.core.handlers.asgi:ASGIHandler.__call__",
    "django.core.handlers.asgi:ASGIHandler.create_request",
    "django.core.handlers.asgi:ASGIHandler.run_get_response",
    "django.core.handlers.asgi:ASGIRequest.__init__",
    "django.core.handlers.asgi:ASGIRequest.close",
    "django.core.handlers.base:BaseHandler._get_response_async",
    "django.core.handlers.base:BaseHandler.check_response",
    "django.core.handlers.base:BaseHandler.get_response_async",
    "django.core.handlers.base:BaseHandler.load_middleware",
    "django.core.handlers.base:BaseHandler.make_view_atomic",
    "django.core.handlers.base:BaseHandler.process_exception_by_middleware",
    "django.core.handlers.base:BaseHandler.resolve_request",
    "django.core.handlers.base:convert_exception_to_response",
    "django.core.handlers.exception:response_for_exception",
    "django.core.cache.backends.base:BaseCache.close",
    "django.db.backends.base.base:BaseDatabaseWrapper.close_if_unusable_or_obsolete",
    "django.dispatch.dispatcher:Signal._live_receivers",
    "django.http.request:HttpRequest.close",
    "django.http.request:HttpRequest.get_host",
    "django.http.response:FileResponse._set_streaming_content",
    "django.http.response:HttpResponseBase.close",
    "django.http.response:HttpResponseBase.make_bytes",
    "django.middleware.common:CommonMiddleware.process_request",
    "django.middleware.common:CommonMiddleware.process_response",
    "django.utils.deprecation:MiddlewareMixin.__acall__",
    "django.utils.deprecation:MiddlewareMixin.__call__",
    "asgiref.sync:SyncToAsync.thread_handler",
]
#: Those whose code is replaced, one for each way in which they are used.
CODE_NAMES = [
    "django.core.handlers.asgi:ASGIHandler.__call__",
    "django.core.handlers.base:BaseHandler.get_response_async",
    "django.core.handlers.base:BaseHandler.process_exception_by_middleware",
    "django.core.cache.backends.base:BaseCache.close",
    "django.dispatch.dispatcher:Signal._live_receivers",
    "django.http.response:HttpResponseBase.close",
    "django.middleware.common:CommonMiddleware.process_request",
    "django.utils.deprecation:MiddlewareMixin.__acall__",
]
PATHS = ["/sync/", "/async/", "/fails/", "/missing/", "/file/", "/stream/"]

if not settings.configured:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tools.wrapped_urls",
        SECRET_KEY="for this test alone",  # noqa: S106
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.middleware.common.CommonMiddleware",
        ],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        },
        LOGGING_CONFIG=None,
    )
    django.setup(set_prefix=False)

#: The names that the current request has called.
called: set[str] = set()


def wrap(name: str) -> Any:
    """Wrap the function of this name; return a function that undoes it."""
    owner, attribute, function = find(name)

    if iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return await function(*args, **kwargs)
    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return function(*args, **kwargs)

    setattr(owner, attribute, wrapper)
    return lambda: setattr(owner, attribute, function)


def swap_code(name: str) -> Any:
    """Put other code into the function itself; return a function that undoes it."""
    _, _, function = find(name)
    code = function.__code__
    was = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__
    )
    was.__kwdefaults__ = function.__kwdefaults__
    originals[name] = was
    maybe_async, maybe_await = (
        ("async ", "await ") if iscoroutinefunction(function) else ("", "")
    )
    source = f"""
{maybe_async}def {function.__name__}(*args, **kwargs):
    import sys
    here = sys.modules["__main__"]
    here.called.add({name!r})
    return {maybe_await}here.originals[{name!r}](*args, **kwargs)
"""
    made: dict[str, Any] = {}
    exec(compile(source, code.co_filename, "exec"), made)  # noqa: S102
    function.__code__ = made[function.__name__].__code__
    defaults = function.__defaults__, function.__kwdefaults__
    function.__defaults__ = function.__kwdefaults__ = None

    def undo() -> None:
        function.__code__ = code
        function.__defaults__, function.__kwdefaults__ = defaults

    return undo


originals: dict[str, Any] = {}


def find(name: str) -> tuple[Any, str, Any]:
    """Return the owner of a function, its name there, and the function."""
    module, _, path = name.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, attribute = path.split(".")
    for each in outer:
        owner = getattr(owner, each)
    return owner, attribute, vars(owner)[attribute]


def scope(path: str) -> dict[str, Any]:
    """Return the scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
    }


async def make_requests(app: Any, sleep_forever: Any, name: str) -> list[str]:
    """Return the paths whose requests have called the function of this name."""
    found = []
    for path in PATHS:
        asked = False

        async def receive() -> Any:
            nonlocal asked
            if asked:
                await sleep_forever()
            asked = True
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            pass

        await app(scope(path), receive, send)
        if name in called:
            found.append(path)
        called.clear()
    return found


def run_on_trio(name: str, replace: Any, *, late: bool) -> list[str]:
    """Run everything for one name."""
    if late:
        import trio_asgi.handler  # noqa: PLC0415
    undo = replace(name)
    import trio  # noqa: PLC0415

    import trio_asgi  # noqa: PLC0415

    app = trio_asgi.get_asgi_application()
    found = trio.run(make_requests, app, trio.sleep_forever, name)
    undo()
    return found


def run_on_django(name: str, replace: Any) -> list[str]:
    """Do the same with Django's own handler."""
    import asyncio  # noqa: PLC0415

    from django.core.asgi import get_asgi_application  # noqa: PLC0415

    undo = replace(name)
    app = get_asgi_application()

    async def sleep_forever() -> None:
        await asyncio.sleep(3600)

    found = asyncio.run(make_requests(app, sleep_forever, name))
    undo()
    return found


def in_child(run: Any, *args: Any) -> Any:
    """Run it in a forked child, which has not imported this package yet."""
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                json.dump(run(*args), file)
                file.flush()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        file.seek(0)
        return json.load(file)


def main(mode: str, kind: str) -> None:
    """Print the results."""
    names, replace = {"wrapper": (NAMES, wrap), "code": (CODE_NAMES, swap_code)}[kind]
    if mode == "early":
        # The children need not import them again.
        importlib.import_module("trio")
        importlib.import_module("trio_asyncio")
    found = {}
    for name in names:
        if mode == "django":
            found[name] = run_on_django(name, replace)
        elif mode == "late":
            found[name] = run_on_trio(name, replace, late=True)
        else:
            run = functools.partial(run_on_trio, late=False)
            found[name] = in_child(run, name, replace)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
