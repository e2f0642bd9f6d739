"""`request.auser()`: one hop for the session and the user, wherever Django agrees."""

from __future__ import annotations

import functools
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings
from django.contrib import auth
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.models import User, UserManager
from django.contrib.sessions.backends import db
from django.core.management import call_command
from django.db import close_old_connections, connections
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

import trio_asgi
from hop_support import STARTPROJECT, counted_hops, here
from support import application, request
from trio_asgi import asyncio_island
from trio_asgi.bridge import get_user
from trio_asgi.bridge.install import install_bridge, uninstall_bridge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support import Answer

#: What has run where, if it is not Django's.
steps: list[str] = []


class OwnStore(db.SessionStore):
    """A session store whose sync and async parts differ."""

    async def aload(self) -> dict[str, Any]:
        steps.append(f"aload on the {here()}")
        return await super().aload()


SessionStore = OwnStore  # as Django looks for it in a module


class SyncBackend(BaseBackend):
    """Has no async part: Django calls the sync one in the thread."""

    def get_user(self, user_id: Any) -> User:
        steps.append(f"get_user in the {here()}")
        return User.objects.get(pk=user_id)


class OtherBackend(ModelBackend):
    """Changes how a user logs in, not how one is read."""

    def authenticate(self, *_: Any, **__: Any) -> None:
        """Let nobody in."""


class AsyncBackend(ModelBackend):
    """Reads the user in a way that only async code knows."""

    async def aget_user(self, user_id: Any) -> User:
        steps.append(f"aget_user on the {here()}")
        return await User.objects.aget(pk=user_id)


class SyncOnly(ModelBackend):
    """Overrides one of the pair: Django's async one does not call it."""

    def get_user(self, user_id: Any) -> User:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give all threads the same database, in a file, with a user."""
    name = str(tmp_path / "db.sqlite3")
    monkeypatch.setitem(connections.databases["default"], "NAME", name)

    def prepare() -> None:
        call_command("migrate", verbosity=0)
        User.objects.create_user("leaf")

    in_thread(prepare)
    steps.clear()
    # The answers for the backends of a test's own are not for other tests.
    get_user._reads_alike.cache_clear()
    get_user._is_djangos_store.cache_clear()
    yield
    get_user._reads_alike.cache_clear()
    get_user._is_djangos_store.cache_clear()


def in_thread(fn: Any) -> Any:
    """Call a function in a thread of its own; return the result."""
    results = []

    def run() -> None:
        results.append(fn())
        close_old_connections()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def log_in(backend: str = "django.contrib.auth.backends.ModelBackend") -> Any:
    """Store a session; return its store's class and the headers of its visitor."""

    def store() -> Any:
        session = import_module(django_settings.SESSION_ENGINE).SessionStore()
        user = User.objects.get()
        session[auth.SESSION_KEY] = str(user.pk)
        session[auth.BACKEND_SESSION_KEY] = backend
        session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        return session.session_key

    return cookie(in_thread(store))


def cookie(key: str) -> dict[str, Any]:
    """Return the headers of a visitor with a session's key."""
    return {"headers": [(b"cookie", b"sessionid=" + key.encode())]}


async def show_user(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    again = await request.auser()
    assert user is again
    return HttpResponse(str(user))


async def visit(view: Any = show_user, **scope: Any) -> tuple[Answer, int]:
    """Make a request; return the answer, and how many hops it has taken."""
    app = application(path("", view), middleware=STARTPROJECT)
    with counted_hops() as hops:
        answer = await request(app, **scope)
        count = hops.count
    assert len(hops.threads) <= 1
    return answer, count


@pytest.mark.parametrize(
    ("engine", "expected"),
    # A cache in files is not made on the loop, and no hook of a store in files is safe.
    [("db", 1), ("signed_cookies", 1), ("cache", 2), ("cached_db", 2), ("file", 3)],
)
async def test_a_page_for_a_signed_in_user_takes_one_hop(
    engine: str, expected: int, tmp_path: Path
) -> None:
    """The session and the user are read in it; the thread closes connections alone."""
    with override_settings(
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}",
        SESSION_FILE_PATH=str(tmp_path),
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                "LOCATION": str(tmp_path / "cache"),
            }
        },
    ):
        answer, hops = await visit(**log_in())
    assert (answer.body, hops) == (b"leaf", expected)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, 0), (cookie("not-a-session-that-there-is"), 2)],
    ids=["no cookie", "unknown session"],
)
async def test_nobody_is_signed_in(headers: dict[str, Any], expected: int) -> None:
    """Without a session no hop is needed. For an old one, the cookie is deleted."""
    answer, hops = await visit(**headers)
    assert answer.body == b"AnonymousUser"
    assert hops <= expected


async def test_a_session_that_the_view_has_read_is_not_read_again() -> None:
    """Then Django's own way takes no more hops: one for each."""

    async def view(request: HttpRequest) -> HttpResponse:
        assert await request.session.aget("missing") is None
        return await show_user(request)

    answer, hops = await visit(view, **log_in())
    assert answer.body == b"leaf"
    assert hops == 2


async def test_a_wrong_hash_ends_the_session() -> None:
    """As in Django, whoever has changed the password is signed out elsewhere."""
    visitor = log_in()

    def change_password() -> None:
        user = User.objects.get()
        user.set_password("another")
        user.save()

    in_thread(change_password)
    answer, _ = await visit(**visitor)
    assert answer.body == b"AnonymousUser"
    assert b"Set-Cookie" in dict(answer.headers)


async def test_an_old_secret_key_renews_the_session() -> None:
    """As in Django, the session gets a new key, and the user stays."""
    visitor = log_in()
    keys = {"SECRET_KEY": "new", "SECRET_KEY_FALLBACKS": [django_settings.SECRET_KEY]}
    with override_settings(**keys):
        answer, _ = await visit(**visitor)
    assert answer.body == b"leaf"
    assert dict(answer.headers)[b"Set-Cookie"].startswith(b"sessionid=")


@pytest.mark.parametrize(
    ("backend", "hops", "expected"),
    [
        (SyncBackend, 1, ["get_user in the thread"]),
        (OtherBackend, 1, []),
        (AsyncBackend, 2, ["aget_user on the loop"]),
        (SyncOnly, 2, []),
    ],
)
async def test_a_backend_of_the_project_is_asked_as_django_asks_it(
    backend: Any, hops: int, expected: list[str]
) -> None:
    """Its ``get_user`` is called only where Django's ``aget_user`` would call it."""
    name = f"{__name__}.{backend.__name__}"
    with override_settings(AUTHENTICATION_BACKENDS=[name]):
        answer, count = await visit(**log_in(name))
    assert (answer.body, count, steps) == (b"leaf", hops, expected)


async def test_a_backend_that_is_replaced_later_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool may change Django's own backend when requests have been served."""
    visitor = log_in()
    assert (await visit(**visitor))[1] == 1
    monkeypatch.setattr(ModelBackend, "aget_user", AsyncBackend.aget_user)
    answer, hops = await visit(**visitor)
    assert (answer.body, hops, steps) == (b"leaf", 2, ["aget_user on the loop"])


async def test_a_session_store_of_the_project_is_used_as_django_uses_it() -> None:
    """Its async methods may differ from the sync ones."""
    with override_settings(SESSION_ENGINE=__name__):
        answer, _ = await visit(**log_in())
    assert answer.body == b"leaf"
    assert steps == ["aload on the loop"]


async def test_a_manager_of_the_project_is_used_as_django_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A query set may have another ``aget``."""

    class Users(QuerySet[User]):
        async def aget(self, *args: Any, **kwargs: Any) -> User:
            steps.append(f"aget on the {here()}")
            return await super().aget(*args, **kwargs)

    class Manager(UserManager.from_queryset(Users)):  # type: ignore[misc]
        pass

    manager = Manager()
    manager.model = User
    monkeypatch.setitem(vars(User._meta), "default_manager", manager)
    answer, hops = await visit(**log_in())
    assert (answer.body, hops, steps) == (b"leaf", 2, ["aget on the loop"])


async def test_a_get_user_that_was_replaced_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Django's ``aget_user`` would not call it, either."""
    monkeypatch.setattr(auth, "get_user", pytest.fail)
    answer, hops = await visit(**log_in())
    assert (answer.body, hops) == (b"leaf", 2)


async def test_an_asyncio_view_has_one_hop_too() -> None:
    """In an island, sync code goes to the request's thread as elsewhere."""
    answer, hops = await visit(asyncio_island(show_user), **log_in())
    assert (answer.body, hops) == (b"leaf", 1)


def test_an_aget_user_that_was_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bridge's own only saves a hop: then there is none, and no error."""
    uninstall_bridge()
    other = functools.partial(auth.aget_user)
    monkeypatch.setattr(auth, "aget_user", other)
    install_bridge()
    assert auth.aget_user is other
    uninstall_bridge()


def test_outside_trio_djangos_own_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio, nothing of this is used."""
    import asyncio  # noqa: PLC0415

    trio_asgi.install_bridge()
    monkeypatch.setattr(get_user, "_get_user", pytest.fail)

    class Request(HttpRequest):
        session = db.SessionStore("0" * 32)

    assert str(asyncio.run(auth.aget_user(Request()))) == "AnonymousUser"
