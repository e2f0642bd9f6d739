"""A site whose requests are all in their views at once, each with its own user."""

from __future__ import annotations

import tempfile
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from django.conf import settings

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

#: How many requests of each kind are made at the same time.
COUNT = 4
KINDS = ("async", "sync")

STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def configure(**more: Any) -> None:
    """Choose the settings; the database is a temporary file."""
    folder = tempfile.mkdtemp()
    settings.configure(
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="tools.site_of_many",
        SECRET_KEY="for this test alone",  # noqa: S106
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.messages",
        ],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": f"{folder}/db",
            }
        },
        MIDDLEWARE=STARTPROJECT,
        LOGGING_CONFIG=None,
        **more,
    )


def log_in() -> list[bytes]:
    """Make the tables and the users; return each user's cookie."""
    from django.contrib.auth import (  # noqa: PLC0415
        BACKEND_SESSION_KEY,
        HASH_SESSION_KEY,
        SESSION_KEY,
    )
    from django.contrib.auth.models import User  # noqa: PLC0415
    from django.contrib.sessions.backends.signed_cookies import (  # noqa: PLC0415
        SessionStore,
    )
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    cookies = []
    for number in range(COUNT):
        user = User.objects.create_user(f"user{number}")
        session = SessionStore()
        session[SESSION_KEY] = str(user.pk)
        session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
        session[HASH_SESSION_KEY] = user.get_session_auth_hash()
        session.save()
        cookies.append(f"sessionid={session.session_key}".encode())
    return cookies


def scope(path: str, cookie: bytes, **others: Any) -> dict[str, Any]:
    """Return the scope of a POST of one user."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"testserver"),
            (b"cookie", cookie),
            (b"content-type", b"application/x-www-form-urlencoded"),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **others,
    }


# Views

#: The calls of a tool's program in each view, before and after all are there.
before: Any = lambda _: None  # noqa: E731
after: Any = lambda _: None  # noqa: E731

_all_async_are_there = trio.Event()
_waiting = 0
_all_sync_are_there = threading.Barrier(COUNT)
#: The threads of the async views.
threads_of_async: set[threading.Thread] = set()


async def async_fail(request: HttpRequest, number: int) -> HttpResponse:
    """Fail when all requests have arrived."""
    from django.contrib.auth.models import User  # noqa: PLC0415

    global _waiting  # noqa: PLW0603
    threads_of_async.add(threading.current_thread())
    before(number)
    await request.auser()
    await User.objects.acount()
    _waiting += 1
    if _waiting == COUNT:
        _all_async_are_there.set()
    await _all_async_are_there.wait()
    after(number)
    raise ZeroDivisionError(f"async {number}")


def sync_fail(request: HttpRequest, number: int) -> HttpResponse:
    """Fail when all requests have arrived."""
    before(number)
    assert request.user.is_authenticated
    _all_sync_are_there.wait(30)
    after(number)
    raise ZeroDivisionError(f"sync {number}")


in_view = trio.Event()


async def wait(request: HttpRequest) -> NoReturn:
    """Wait for the client to leave."""
    in_view.set()
    await trio.sleep_forever()


def urls() -> Any:
    from django.urls import path  # noqa: PLC0415
    from django.views.decorators.csrf import csrf_exempt  # noqa: PLC0415

    return [
        path("async/<int:number>/", csrf_exempt(async_fail)),
        path("sync/<int:number>/", csrf_exempt(sync_fail)),
        path("wait/", csrf_exempt(wait)),
    ]


urlpatterns = urls()


async def make_all_requests(app: Any, cookies: list[bytes]) -> list[int]:
    """Make all requests at once, and one whose client disconnects; return statuses."""
    from trio_asgi.testing import ApplicationCommunicator  # noqa: PLC0415

    statuses = []

    async def make_one(kind: str, number: int) -> None:
        async with ApplicationCommunicator(
            app, scope(f"/{kind}/{number}/", cookies[number])
        ) as communicator:
            body = f"name={kind}-{number}".encode()
            await communicator.send_input({"type": "http.request", "body": body})
            start = await communicator.receive_output(timeout=60)
            statuses.append(start["status"])
            await communicator.receive_output(timeout=60)
            await communicator.wait(timeout=60)

    async with trio.open_nursery() as nursery:
        for kind in KINDS:
            for number in range(COUNT):
                nursery.start_soon(make_one, kind, number)
    async with ApplicationCommunicator(
        app, scope("/wait/", cookies[0])
    ) as communicator:
        await communicator.send_input({"type": "http.request"})
        with trio.fail_after(30):
            await in_view.wait()
        await communicator.send_input({"type": "http.disconnect"})
        await communicator.wait(timeout=60)
    return statuses
