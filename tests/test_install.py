"""`install_bridge`, `uninstall_bridge`: what they replace, put back, and refuse."""

from __future__ import annotations

import asyncio
import functools
import importlib
import pkgutil
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import asgiref
import asgiref.local
import asgiref.sync
import django.core.handlers
import django.db.models
import django.dispatch.dispatcher
import django.test
import django.utils.asyncio
import pytest
import trio
from asgiref.sync import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from django.http import StreamingHttpResponse

import trio_asgi
from thread_support import run_script
from trio_asgi.bridge import (
    async_to_sync as _async_to_sync,
    install as _bridge,
    pool_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

dispatcher: Any = django.dispatch.dispatcher


@pytest.fixture(autouse=True)
def uninstalled() -> Iterator[None]:
    """Start without the bridge; afterwards restore it for the other tests."""
    trio_asgi.uninstall_bridge()
    yield
    trio_asgi.uninstall_bridge()
    trio_asgi.install_bridge()


# All of asgiref and Django


def load_everything() -> None:
    """Import all of asgiref, and the parts of Django that call asgiref or asyncio."""
    for package in (asgiref, django.core.handlers, django.test, django.db.models):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)


#: The packages that have the replaced attributes, and many others.
NEAR = (
    "asgiref.",
    "django.utils.asyncio.",
    "django.dispatch.",
    "django.http.response.",
    "django.contrib.auth.",
)


def owners(prefixes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the loaded modules of these packages, and their classes."""
    for name, module in sorted(sys.modules.items()):
        if f"{name}.".startswith(prefixes) and module is not None:
            yield name, module
            for cls in list(vars(module).values()):
                # Not by isinstance(), which would load lazy objects.
                if issubclass(type(cls), type) and cls.__module__ == name:
                    yield f"{name}.{cls.__qualname__}", cls


def inside(value: Any) -> object:
    """Return the contents of a function; of other objects, only their identity."""
    # Not by isinstance() or getattr(), which would load lazy objects.
    function = value.__func__ if type(value) in (classmethod, staticmethod) else value
    if type(function) is not FunctionType:
        return id(value)
    return (
        id(value),
        id(function.__code__),
        function.__code__,
        id(function.__globals__),
        id(function.__defaults__),
        id(function.__kwdefaults__),
        [id(cell) for cell in function.__closure__ or ()],
        {key: id(each) for key, each in vars(function).items()},
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
    )


def snapshot(
    prefixes: tuple[str, ...] = NEAR,
) -> dict[str, tuple[object, object]]:
    """Return the present value of every attribute, with its contents."""
    return {
        f"{path}:{name}": (value, inside(value))
        for path, owner in owners(prefixes)
        for name, value in list(vars(owner).items())
        # Written by the import system and by the interpreter.
        if name not in ("__weakref__", "__builtins__")
    }


def changes(
    one: dict[str, tuple[object, object]], other: dict[str, tuple[object, object]]
) -> set[str]:
    """Return which attributes are not the same object with the same contents."""
    missing = (object(), None)
    return {
        key
        for key in one.keys() | other.keys()
        if one.get(key, missing)[0] is not other.get(key, missing)[0]
        or one.get(key, missing)[1] != other.get(key, missing)[1]
    }


SIGNALS = "_run_parallel" if hasattr(dispatcher, "_run_parallel") else "asyncio"

REPLACED = {
    "asgiref.sync.SyncToAsync:__call__",
    "asgiref.sync.AsyncToSync:__call__",
    "asgiref.sync.ThreadSensitiveContext:__aenter__",
    "asgiref.sync.ThreadSensitiveContext:__aexit__",
    "asgiref.sync:_restore_context",
    "asgiref.local:asyncio",
    "django.utils.asyncio:get_running_loop",
    f"django.dispatch.dispatcher:{SIGNALS}",
    "django.http.response.StreamingHttpResponse:_set_streaming_content",
    "django.http.response.StreamingHttpResponse:streaming_content",
    "django.contrib.auth:aget_user",
}

#: The owners and names of the replaced attributes.
PLACES: list[tuple[Any, str]] = [
    (SyncToAsync, "__call__"),
    (AsyncToSync, "__call__"),
    (ThreadSensitiveContext, "__aenter__"),
    (ThreadSensitiveContext, "__aexit__"),
    (asgiref.sync, "_restore_context"),
    (asgiref.local, "asyncio"),
    (django.utils.asyncio, "get_running_loop"),
    (dispatcher, SIGNALS),
    (StreamingHttpResponse, "_set_streaming_content"),
    (StreamingHttpResponse, "streaming_content"),
]


def test_nothing_but_a_few_attributes_is_replaced_and_all_come_back() -> None:
    """Of all loaded code only these attributes change, and `uninstall` undoes it.

    The objects are the same, and so is their code.
    """
    load_everything()
    everything = ("asgiref.", "django.")
    pristine = snapshot(everything)
    for _ in range(2):
        trio_asgi.install_bridge(async_to_sync_backend="trio")
        assert changes(pristine, snapshot(everything)) == REPLACED
        trio_asgi.uninstall_bridge()
        assert changes(pristine, snapshot(everything)) == set()


def test_use_leaves_nothing_in_asgiref() -> None:
    """Whatever was called meanwhile, asgiref and Django are unchanged afterwards."""

    async def coroutine() -> str:
        async with ThreadSensitiveContext():
            return await sync_to_async(lambda: "called")()

    async_to_sync(coroutine)()
    pristine = snapshot(("asgiref.", "django."))
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    assert async_to_sync(coroutine)() == "called"
    assert trio.run(coroutine) == "called"
    assert asyncio.run(coroutine()) == "called"
    assert trio.run(sync_to_async(async_to_sync(coroutine))) == "called"
    trio_asgi.uninstall_bridge()
    assert changes(pristine, snapshot(("asgiref.", "django."))) == set()
    assert async_to_sync(coroutine)() == "called"


def test_the_comparison_of_these_tests_sees_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A changed code object, attribute or default is a difference."""
    pristine = snapshot()
    handler: Any = SyncToAsync.thread_handler
    with monkeypatch.context() as patch:
        patch.setattr(handler, "__code__", handler.__code__.replace(co_name="other"))
        assert changes(pristine, snapshot()) == {
            "asgiref.sync.SyncToAsync:thread_handler"
        }
    with monkeypatch.context() as patch:
        patch.setattr(handler, "mark", True, raising=False)
        patch.setattr(asgiref.sync, "mark", True, raising=False)
        assert len(changes(pristine, snapshot())) == 2
    assert changes(pristine, snapshot()) == set()


def test_each_call_may_be_repeated() -> None:
    """A second `install` or `uninstall` changes nothing."""
    trio_asgi.install_bridge()
    installed = snapshot()
    trio_asgi.install_bridge()
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    assert changes(installed, snapshot()) == set()
    trio_asgi.uninstall_bridge()
    uninstalled = snapshot()
    trio_asgi.uninstall_bridge()
    assert changes(uninstalled, snapshot()) == set()


def test_many_threads_install_and_uninstall() -> None:
    """Whatever the order, at every moment either all is replaced or nothing."""
    pristine = {place: vars(place[0])[place[1]] for place in PLACES}
    barrier = threading.Barrier(4)

    def work(seed: int) -> None:
        choose = random.Random(seed).choice  # noqa: S311
        barrier.wait()
        for _ in range(200):
            choose([trio_asgi.install_bridge, trio_asgi.uninstall_bridge])()
            with _bridge._lock:
                replaced = {
                    place
                    for place, value in pristine.items()
                    if vars(place[0])[place[1]] is not value
                }
            assert len(replaced) in (0, len(PLACES))

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(work, range(4)))
    trio_asgi.uninstall_bridge()
    for (owner, name), value in pristine.items():
        assert vars(owner)[name] is value


def test_threads_that_install_at_once_wrap_the_originals_once() -> None:
    """Below each replacement is the original, and not another replacement."""
    original = vars(SyncToAsync)["__call__"]
    barrier = threading.Barrier(8)

    def work(_number: int) -> None:
        barrier.wait()
        trio_asgi.install_bridge()

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    assert vars(SyncToAsync)["__call__"].__wrapped__ is original


# The kind of new loops


def runs_on() -> str:
    """Return which library `async_to_sync` starts here."""

    async def coroutine() -> str:
        return "trio" if trio.lowlevel.in_trio_task() else "asyncio"

    return async_to_sync(coroutine)()


def test_the_backend_of_async_to_sync() -> None:
    """The argument chooses; without it the choice stays; `uninstall_bridge` forgets."""
    assert runs_on() == "asyncio"
    trio_asgi.install_bridge()
    assert runs_on() == "asyncio"
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    assert runs_on() == "trio"
    trio_asgi.install_bridge()
    assert runs_on() == "trio"
    trio_asgi.install_bridge(async_to_sync_backend="asyncio")
    assert runs_on() == "asyncio"
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    trio_asgi.uninstall_bridge()
    assert runs_on() == "asyncio"
    trio_asgi.install_bridge()
    assert runs_on() == "asyncio"


@pytest.mark.parametrize(
    ("configured", "before", "after"),
    [
        ({}, None, "trio"),
        ({}, "asyncio", "trio"),
        ({"ASYNC_TO_SYNC_BACKEND": "asyncio"}, None, "asyncio"),
        ({"ASYNC_TO_SYNC_BACKEND": "trio"}, None, "trio"),
        ({"ASYNC_TO_SYNC_BACKEND": "trio"}, "asyncio", "trio"),
        ({"ASYNC_TO_SYNC_BACKEND": "asyncio"}, "trio", "asyncio"),
        ({"ASYNC_TO_SYNC_BACKEND": None}, "asyncio", "trio"),
        # Wrong settings are left to the system check, and the bridge is installed.
        ({"ASYNC_TO_SYNC_BACKEND": "curio"}, "trio", "trio"),
    ],
)
def test_the_setting(
    settings_dict: Callable[[dict[str, Any]], None],
    configured: dict[str, Any],
    before: Any,
    after: str,
) -> None:
    """``ASYNC_TO_SYNC_BACKEND`` chooses when the app is ready: Trio by default."""
    if before is not None:
        trio_asgi.install_bridge(async_to_sync_backend=before)
    settings_dict(configured)
    django.apps.apps.get_app_config("trio_asgi").ready()
    assert _bridge._installed
    assert runs_on() == after


@pytest.fixture
def settings_dict() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Provide a way to set ``TRIO_ASGI`` for a test."""
    override: Any = None

    def configure(value: dict[str, Any]) -> None:
        nonlocal override
        override = django.test.override_settings(TRIO_ASGI=value)
        override.enable()

    yield configure
    override.disable()
    pool_options.configure_threads()


def test_a_management_command_with_the_app_runs_trio() -> None:
    """With the app, a program only has to call `django.setup()`."""
    output = run_script(
        """
        import trio
        from asgiref.sync import async_to_sync
        from django.conf import settings

        settings.configure(INSTALLED_APPS=["trio_asgi"])
        import django
        django.setup()

        async def coroutine():
            await trio.lowlevel.checkpoint()
            return trio.lowlevel.in_trio_task()

        print(async_to_sync(coroutine)())
        """
    )
    assert output == "True\n"


def test_an_application_without_the_app_changes_no_loops() -> None:
    """A project that has not installed the app keeps asyncio where no loop runs."""
    output = run_script(
        """
        from asgiref.sync import async_to_sync
        from django.conf import settings

        settings.configure(INSTALLED_APPS=[], ROOT_URLCONF="urls")
        import asyncio, trio_asgi
        trio_asgi.get_asgi_application()

        async def coroutine():
            await asyncio.sleep(0)
            return "asyncio"

        print(async_to_sync(coroutine)())
        """
    )
    assert output == "asyncio\n"


def test_the_backend_of_async_to_sync_without_settings() -> None:
    """`async_to_sync` runs Trio in a program that has no Django settings."""
    output = run_script(
        """
        import os
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        import trio, trio_asgi
        from asgiref.sync import async_to_sync, sync_to_async
        from django.conf import settings

        trio_asgi.install_bridge(async_to_sync_backend="trio")

        async def coroutine():
            await trio.lowlevel.checkpoint()
            return await sync_to_async(lambda: "called")()

        print(async_to_sync(coroutine)())
        trio_asgi.uninstall_bridge()
        print(settings.configured)
        """
    )
    assert output == "called\nFalse\n"


# Bad input


@pytest.mark.parametrize("wrong", ["curio", "Trio", "", 0, b"trio", ["trio"], {}])
def test_unknown_loops(wrong: Any) -> None:
    """Other loops are refused by name, and nothing is installed."""
    pristine = snapshot()
    with pytest.raises(ValueError, match="it must be 'asyncio' or 'trio'") as caught:
        trio_asgi.install_bridge(async_to_sync_backend=wrong)
    assert f"async_to_sync_backend={wrong!r}" in str(caught.value)
    assert changes(pristine, snapshot()) == set()
    assert runs_on() == "asyncio"


def test_a_wrong_choice_leaves_the_earlier_one() -> None:
    """After a refused call, everything is installed as before."""
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    installed = snapshot()
    with pytest.raises(ValueError, match="async_to_sync_backend='curio'"):
        trio_asgi.install_bridge(async_to_sync_backend="curio")  # type: ignore[arg-type] # that is the point
    assert changes(installed, snapshot()) == set()
    assert runs_on() == "trio"


@pytest.mark.parametrize(
    ("module", "version", "needed"),
    [
        (asgiref, "3.8.1", "3.9.2"),
        (asgiref, "3.9.1", "3.9.2"),
        (asgiref, "3.9", "3.9.2"),
        (asgiref, "2.0", "3.9.2"),
        (trio, "0.30.0", "0.31"),
        (trio, "0.30.99+dev", "0.31"),
        (trio, "0.4", "0.31"),
    ],
)
def test_versions_that_are_too_old(
    module: ModuleType, version: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old asgiref or Trio is refused: the error names both versions and the fix."""
    pristine = snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(module, "__version__", version)
        with pytest.raises(RuntimeError) as caught:
            trio_asgi.install_bridge(async_to_sync_backend="trio")
    name = module.__name__
    assert str(caught.value) == (
        f"trio_asgi needs {name} {needed} or newer, and found {version}: "
        f"pip install --upgrade {name}"
    )
    assert changes(pristine, snapshot()) == set()
    assert runs_on() == "asyncio"


@pytest.mark.parametrize(
    ("module", "version"),
    [
        (asgiref, "3.9.2"),
        (asgiref, "3.9.2.post1"),
        (asgiref, "3.10"),
        (asgiref, "3.10.0rc1"),
        (asgiref, "4"),
        (trio, "0.31.0"),
        (trio, "0.31"),
        (trio, "0.100.0+dev"),
        (trio, "1.0"),
    ],
)
def test_versions_that_are_new_enough(
    module: ModuleType, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest supported versions, and all newer ones, are accepted."""
    monkeypatch.setattr(module, "__version__", version)
    trio_asgi.install_bridge()


# Other libraries that replace the same attributes


def plain(original: Any) -> Any:
    """Replace a function by one that looks quite different."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    return replacement


def wrapping(original: Any) -> Any:
    """Replace a function carefully, with `functools.wraps`."""
    return functools.wraps(original)(plain(original))


def wrapping_twice(original: Any) -> Any:
    """Do so like two libraries in a row."""
    return wrapping(wrapping(original))


class Proxy:
    """Like wrapt's proxies: an object that looks in every respect like another one."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)

    def __getattribute__(self, name: str) -> Any:
        wrapped = object.__getattribute__(self, "__wrapped__")
        return wrapped if name == "__wrapped__" else getattr(wrapped, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(object.__getattribute__(self, "__wrapped__"), name, value)

    def __get__(self, instance: Any, owner: Any) -> Any:
        wrapped = object.__getattribute__(self, "__wrapped__")
        if instance is None or isinstance(wrapped, ModuleType):
            return self
        return wrapped.__get__(instance, owner)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return object.__getattribute__(self, "__wrapped__")(*args, **kwargs)

    def __repr__(self) -> str:
        return "<Proxy>"


def partial(original: Any) -> Any:
    """Replace a function by an object that is called with it."""
    return functools.partial(original)


def module_copy(original: Any) -> Any:
    """Replace a module by a copy with a change."""
    copy = ModuleType(original.__name__)
    vars(copy).update(vars(original))
    return copy


def wrapping_property(original: Any) -> Any:
    """Replace a property by another one that calls it."""
    return property(wrapping(original.fget), original.fset)


def replacements() -> Iterator[Any]:
    """Yield each place with each kind of replacement that is possible there."""
    for owner, name in PLACES:
        makers: list[Any] = [plain, wrapping, wrapping_twice, Proxy, partial]
        if name == "asyncio":
            makers = [module_copy, Proxy]
        if name == "streaming_content":
            makers = [wrapping_property]
        for make in makers:
            path = f"{getattr(owner, '__qualname__', owner.__name__)}.{name}"
            yield pytest.param(owner, name, make, path, id=f"{path}-{make.__name__}")


@pytest.mark.parametrize(("owner", "name", "make", "path"), [*replacements()])
def test_another_library_came_first(
    owner: Any, name: str, make: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another library has replaced an attribute, the bridge replaces none."""
    other = make(vars(owner)[name])
    monkeypatch.setattr(owner, name, other)
    found = snapshot()
    with pytest.raises(RuntimeError) as caught:
        trio_asgi.install_bridge(async_to_sync_backend="trio")
    assert str(caught.value) == (
        f"trio_asgi.install_bridge() found {path} already replaced, by {other!r}. Call "
        "install_bridge() before that, or undo that first."
    )
    assert changes(found, snapshot()) == set()
    # `uninstall_bridge` also knows that it is not installed.
    trio_asgi.uninstall_bridge()
    assert changes(found, snapshot()) == set()
    monkeypatch.undo()
    assert runs_on() == "asyncio"
    trio_asgi.install_bridge()
    assert {place for place in REPLACED if not _is_pristine(place, found)} >= (
        REPLACED - {_key(owner, name)}
    )


def _key(owner: Any, name: str) -> str:
    module = getattr(owner, "__module__", None)
    path = f"{module}.{owner.__qualname__}" if module else owner.__name__
    return f"{path}:{name}"


def _is_pristine(key: str, before: dict[str, tuple[object, object]]) -> bool:
    return snapshot()[key][0] is before[key][0]


@pytest.mark.parametrize(("owner", "name", "make", "path"), [*replacements()])
def test_another_library_came_later(
    owner: Any, name: str, make: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`uninstall` does not remove another library's wrapper: it refuses entirely."""
    pristine = snapshot()
    trio_asgi.install_bridge(async_to_sync_backend="trio")
    ours = vars(owner)[name]
    other = make(ours) if make is not module_copy else Proxy(ours)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other)
        found = snapshot()
        with pytest.raises(RuntimeError) as caught:
            trio_asgi.uninstall_bridge()
        assert str(caught.value) == (
            f"trio_asgi.uninstall_bridge() found {path} replaced once more, by "
            f"{other!r}. Undo that first."
        )
        assert changes(found, snapshot()) == set()
        # It is still installed, so there is nothing to complain about.
        trio_asgi.install_bridge()
        assert changes(found, snapshot()) == set()
        assert _async_to_sync.async_to_sync_backend == "trio"
    trio_asgi.uninstall_bridge()
    assert changes(pristine, snapshot()) == set()


def test_another_library_on_top_goes_on_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrapper that comes after the bridge is called, on Trio too."""
    trio_asgi.install_bridge()
    called: list[str] = []

    def trace(name: str, original: Any) -> Any:
        @functools.wraps(original)
        def traced(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return original(*args, **kwargs)

        return traced

    for cls in (SyncToAsync, AsyncToSync):
        original = vars(cls)["__call__"]
        monkeypatch.setattr(cls, "__call__", trace(cls.__name__, original))

    async def coroutine() -> str:
        return await sync_to_async(lambda: "called")()

    async def main() -> str:
        result: str = await sync_to_async(async_to_sync(coroutine))()
        return result

    assert trio.run(main) == "called"
    assert called == ["SyncToAsync", "AsyncToSync", "SyncToAsync"]
    assert asyncio.run(main()) == "called"
    assert len(called) == 6
    monkeypatch.undo()


@pytest.mark.parametrize(("owner", "name"), PLACES)
def test_an_attribute_that_is_not_there(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If something is missing, an error says what, and nothing is installed."""
    if name == "_run_parallel":
        pytest.skip("then it is an older Django")
    with monkeypatch.context() as patch:
        patch.delattr(owner, name)
        found = snapshot()
        with pytest.raises(RuntimeError, match=f"found .*{name} already replaced"):
            trio_asgi.install_bridge()
        assert changes(found, snapshot()) == set()
    trio_asgi.install_bridge()
    original = vars(owner)[name]
    delattr(owner, name)
    with pytest.raises(RuntimeError, match=f"found .*{name} replaced once more"):
        trio_asgi.uninstall_bridge()
    setattr(owner, name, original)
    trio_asgi.uninstall_bridge()


def test_loading_trio_asyncio_is_no_replacement() -> None:
    """trio-asyncio replaces asyncio's own functions, before or after: both are fine."""
    for first in ("trio_asyncio", "django.utils.asyncio"):
        output = run_script(
            f"""
            import importlib
            importlib.import_module({first!r})
            import trio_asyncio, trio_asgi, django.utils.asyncio
            before = django.utils.asyncio.get_running_loop
            trio_asgi.install_bridge()
            assert django.utils.asyncio.get_running_loop is not before
            trio_asgi.uninstall_bridge()
            assert django.utils.asyncio.get_running_loop is before
            print("fine")
            """
        )
        assert output == "fine\n"
