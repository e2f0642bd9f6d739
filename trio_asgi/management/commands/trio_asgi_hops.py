"""``manage.py trio_asgi_hops``: how many hops a request takes, and why."""

from __future__ import annotations

import itertools
import math
import re
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio
from django.apps import apps
from django.conf import settings
from django.contrib import auth
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.urls import get_resolver
from django.utils.crypto import get_random_string
from django.utils.module_loading import import_string

from trio_asgi import ASGIHandler, ASGIStaticFilesHandler
from trio_asgi.hops.causes import name_of
from trio_asgi.hops.record import RecordedHop, record_hops, seconds_of
from trio_asgi.testing.communicator import ApplicationCommunicator
from trio_asgi.testing.scopes import http_scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.management.base import CommandParser

    from trio_asgi.asgi.types import Message, Scope

_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_METHODS: Final = (*_SAFE_METHODS, "POST", "PUT", "PATCH", "DELETE")
_FORM: Final = "application/x-www-form-urlencoded"


class Command(BaseCommand):
    """Makes one request, and prints what has asked for each of its hops."""

    help = (
        "Requests a page once, for real: its view, its middleware and the receivers of "
        "signals run, and what they store is stored. Says how many hops to a thread "
        "the request has taken, what has asked for each, and how to save it."
    )
    # What is wrong in the settings is said below, and shortly.
    requires_system_checks = []  # noqa: RUF012 - Django's

    def add_arguments(self, parser: CommandParser) -> None:
        """Take what makes up a request."""
        parser.add_argument(
            "path", nargs="?", default="/", help='The path of the URL; "/" if left out.'
        )
        parser.add_argument(
            "--method", help="The request's method; GET, or POST if there is a body."
        )
        parser.add_argument("--data", help="The request's body.")
        parser.add_argument(
            "--content-type", default=_FORM, help=f"Its type; {_FORM} if left out."
        )
        parser.add_argument(
            "--header",
            action="append",
            default=[],
            help='A header, as "Name: value". May be given several times.',
        )
        parser.add_argument(
            "--user",
            help="The name or the primary key of a user who is signed in. For that, a "
            "session is stored for as long as the request takes, and then deleted. No "
            "signal is sent, and the user's last login stays.",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=30,
            help="After how many seconds the client leaves, as a stream may not end.",
        )

    def handle(self, *, path: str, user: str | None, **options: Any) -> None:
        """Make the request, and print the record.

        Raises:
            CommandError: the arguments are wrong, the project cannot be loaded, or the
                application has raised an error.
        """
        body = (options["data"] or "").encode()
        method = (options["method"] or ("POST" if body else "GET")).upper()
        if method not in _METHODS:
            raise CommandError(f"{method!r} is none of {', '.join(_METHODS)}.")
        if not re.fullmatch(r"/(?!/)[^\s#]*", path):
            raise CommandError(
                f"{path!r} is no path: it must begin with one slash, without scheme "
                "and host, and have no space or fragment."
            )
        headers = dict(map(_header, options["header"]))
        if body:
            headers = {"Content-Type": options["content_type"], **headers}
        handler = self._handler()
        hops: list[RecordedHop] = []
        record_hops(handler, hops)
        with _session_of(user) as cookies:
            scope = _scope(path, method, headers, cookies)
            start = _request(handler, scope, body, options["timeout"])
        status = start["status"] if start else "no answer in time"
        self._print(f"{method} {path} -> {status}", hops)
        kept = "What the page has stored stays."
        if user is not None:
            kept = f"The session of {user} was stored, and is deleted. {kept}"
        self.stdout.write(f"\n{kept}")

    def _handler(self) -> ASGIHandler:
        """Return the project's handler, or a new one.

        Raises:
            CommandError: neither can be had.
        """
        try:
            # Such errors would look like a page's.
            _ = get_resolver().url_patterns
            named = getattr(settings, "ASGI_APPLICATION", None)
            application = import_string(named) if named else ASGIHandler()
        except Exception as error:
            raise CommandError(
                f"The project cannot be loaded. {_said(error)}"
            ) from error
        while isinstance(application, ASGIStaticFilesHandler):
            application = application.application
        if isinstance(application, ASGIHandler):
            return application
        self.stderr.write(
            f"ASGI_APPLICATION is no handler of trio_asgi, but {name_of(application)}. "
            "This is about a plain trio_asgi.ASGIHandler."
        )
        return ASGIHandler()

    def _print(self, goal: str, hops: list[RecordedHop]) -> None:
        self.stdout.write(goal)
        number = f"{len(hops) or 'no'} hop{'' if len(hops) == 1 else 's'}"
        took = f", {_milliseconds(seconds_of(hops))} in threads" if hops else ""
        self.stdout.write(f"{number}{took}")
        place = 1
        for _, group in itertools.groupby(hops, lambda hop: (hop.causes, hop.place)):
            alike = [*group]
            last = place + len(alike) - 1
            name = f"hop {place}" if last == place else f"hops {place} to {last}"
            first, place = alike[0], last + 1
            times = (
                f"{_milliseconds(sum(hop.seconds for hop in alike))}, "
                f"after {_milliseconds(sum(hop.waited for hop in alike))} of waiting"
            )
            where = f", {first.place}" if first.place else ""
            self.stdout.write(f"\n{name}{where}: {times}")
            for cause in first.causes:
                self.stdout.write(f"  {cause.what}")
                if cause.advice:
                    self.stdout.write(f"    {cause.advice}")


def _request(
    handler: ASGIHandler, scope: Scope, body: bytes, timeout: float
) -> Message | None:
    """Make a request within the application's lifespan; return the response's start.

    Raises:
        CommandError: the application has raised an error.
    """
    start: Message | None = None

    async def receive_response() -> None:
        nonlocal start
        async with ApplicationCommunicator(handler, scope) as client:
            await client.send_input({"type": "http.request", "body": body})
            with trio.move_on_after(timeout):
                message = start = await client.receive_output(math.inf)
                while message is start or message.get("more_body"):
                    message = await client.receive_output(math.inf)
                await client.wait(math.inf)

    async def serve() -> None:
        lifespan = {"type": "lifespan", "asgi": scope["asgi"], "state": {}}
        async with ApplicationCommunicator(handler, lifespan) as server:
            await server.send_input({"type": "lifespan.startup"})
            started = await server.receive_output(math.inf)
            if started["type"] != "lifespan.startup.complete":
                raise CommandError(f"The start-up failed. {started['message']}")
            await receive_response()
            await server.send_input({"type": "lifespan.shutdown"})
            await server.receive_output(math.inf)

    try:
        trio.run(serve)
    except Exception as error:
        if isinstance(error, CommandError):
            raise
        raise CommandError(f"The application failed. {_said(error)}") from error
    return start


def _scope(
    path: str, method: str, headers: dict[str, str], cookies: dict[str, str]
) -> Scope:
    """Return the scope of a request that Django's own middleware lets pass.

    It came over HTTPS, or else ``SECURE_SSL_REDIRECT`` would redirect it, to a host
    that is allowed, and has the token of a form.
    """
    allowed = settings.ALLOWED_HOSTS or ["localhost"]
    host = "localhost" if allowed[0] == "*" else str(allowed[0]).removeprefix(".")
    sent = {"Host": host}
    if settings.SECURE_PROXY_SSL_HEADER:
        name, value = settings.SECURE_PROXY_SSL_HEADER
        sent[_header_name(name)] = value
    if method not in _SAFE_METHODS:
        token = get_random_string(32)
        cookies = {**cookies, settings.CSRF_COOKIE_NAME: token}
        sent |= {
            "Origin": f"https://{host}",
            _header_name(settings.CSRF_HEADER_NAME): token,
        }
    if cookies:
        sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return http_scope(path, method=method, headers={**sent, **headers}, scheme="https")


def _header_name(key: str) -> str:
    """Return what a header is called that Django calls ``HTTP_...``."""
    return key.removeprefix("HTTP_").replace("_", "-")


def _header(text: str) -> tuple[str, str]:
    """Split a header into name and value.

    Raises:
        CommandError: it is none.
    """
    name, colon, value = text.partition(":")
    if not (colon and re.fullmatch(r"[\w-]+", name, re.ASCII) and value.isprintable()):
        raise CommandError(f'{text!r} is no header: it must be "Name: value".')
    return name, value.strip()


@contextmanager
def _session_of(name: str | None) -> Iterator[dict[str, str]]:
    """Store a session of a user for the length of the block; yield its cookie.

    Raises:
        CommandError: there is no such user.
    """
    if name is None:
        yield {}
        return
    user = _user(name)
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[auth.SESSION_KEY] = user._meta.pk.value_to_string(user)
    session[auth.BACKEND_SESSION_KEY] = next(
        path
        for path in settings.AUTHENTICATION_BACKENDS
        if hasattr(import_string(path), "get_user")
    )
    session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    try:
        yield {settings.SESSION_COOKIE_NAME: session.session_key}
    finally:
        session.delete()


def _user(name: str) -> Any:
    if not apps.is_installed("django.contrib.auth"):
        raise CommandError("There are no users: django.contrib.auth is not installed.")
    users = auth.get_user_model()._default_manager
    with suppress(ObjectDoesNotExist):
        return users.get_by_natural_key(name)
    with suppress(ObjectDoesNotExist, ValueError, ValidationError):
        return users.get(pk=name)
    raise CommandError(f"There is no user {name!r}, nor one with that primary key.")


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
