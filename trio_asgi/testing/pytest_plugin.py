"""A plugin for pytest with pytest-trio and pytest-django.

Enable it in the project's outermost ``conftest.py``::

    pytest_plugins = ["trio_asgi.testing.pytest_plugin"]

It runs Trio tests that use the database with `trio_asgi.testing.run`. Then their sync
code runs in pytest's thread, where pytest-django has opened the test's transaction.
Other tests run as usual.
"""

from __future__ import annotations

from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from trio_asgi import ASGIHandler, serve

from .install import install
from .lifespan import lifespan
from .threads import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_asgi.asgi.types import ASGIApplication

#: Where `asgi_server` listens.
_HOST: Final = "127.0.0.1"

#: A test that uses one of these fixtures of pytest-django uses the database.
_DATABASE_FIXTURES = {"db", "transactional_db", "live_server"}


def pytest_configure(config: pytest.Config) -> None:
    """Install the bridge, and this package's classes for tests: see `install`.

    The settings choose the bridge's backend.

    Raises:
        pytest.UsageError: pytest-trio is not installed, or is disabled.
    """
    if not config.pluginmanager.hasplugin("trio"):
        raise pytest.UsageError(
            f"{__name__} needs pytest-trio: pip install pytest-trio, and do not "
            "disable it."
        )
    install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Make pytest-trio use `run` for tests on Trio that use the database.

    Called before pytest-trio adds a marker: the first one that names a runner wins.
    """
    if config.getini("trio_run") != "trio":
        return  # qtrio needs the main thread
    for item in items:
        if (
            isinstance(item, pytest.Function)
            and _is_on_trio(item)
            and _uses_database(item)
            and not any("run" in mark.kwargs for mark in item.iter_markers("trio"))
        ):
            item.add_marker(pytest.mark.trio(run=run))


def _is_on_trio(item: pytest.Function) -> bool:
    is_auto = item.config.getini("trio_mode") and iscoroutinefunction(item.obj)
    return is_auto or item.get_closest_marker("trio") is not None


def _uses_database(item: pytest.Function) -> bool:
    has_fixture = not _DATABASE_FIXTURES.isdisjoint(item.fixturenames)
    return has_fixture or item.get_closest_marker("django_db") is not None


@pytest.fixture
def asgi_application() -> ASGIHandler:
    """The application under test: the project's views and middleware, on Trio.

    Override it in ``conftest.py`` to test another application.
    """
    return ASGIHandler()


@pytest.fixture
async def asgi_lifespan(asgi_application: ASGIApplication) -> AsyncIterator[None]:
    """Runs the application's lifespan around the test, for example for ``start_soon``.

    The test fails if startup or shutdown fails.
    """
    async with lifespan(asgi_application):
        yield


@pytest.fixture
async def asgi_server(
    asgi_application: ASGIApplication, settings: Any
) -> AsyncIterator[str]:
    """The URL of a real hypercorn on a free port, without a slash at the end.

    The test's ``ALLOWED_HOSTS`` have its host, too.
    """
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, _HOST]
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(serve, asgi_application, f"{_HOST}:0")
        yield url
        nursery.cancel_scope.cancel()
