"""``manage.py trio_asgi_hops``: how many hops a request takes, and why."""

from __future__ import annotations

import math
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio
from django.conf import settings
from django.contrib import auth
from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import BaseCommand, CommandError
from django.http.request import HttpHeaders
from django.utils.crypto import get_random_string
from django.utils.module_loading import import_string

from trio_asgi import ASGIHandler
from trio_asgi.hops.record import advice_for, record_hops
from trio_asgi.testing.communicator import ApplicationCommunicator
from trio_asgi.testing.scopes import http_scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.core.management.base import CommandParser

    from trio_asgi.asgi.types import Scope

#: After how many seconds the client leaves, because some streams never end.
SECONDS: Final = 30


class Command(BaseCommand):
    """Makes one request, and prints what has asked for each of its hops."""

    help = (
        "Requests a page once, for real: its view, its middleware and the receivers of "
        "signals run, and what they store is stored. Says how many hops to a thread "
        "the request has taken, what has asked for each, and how to save it."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Take what makes up a request."""
        add = parser.add_argument
        add("path", nargs="?", default="/", help='The path of the URL, or "/".')
        add("--method", help="The method; GET, or POST if there is a body.")
        add("--data", default="", help="The body.")
        add("--content-type", default="application/x-www-form-urlencoded")
        add("--user", help="The name of a user who is signed in for this request.")

    def handle(self, *, path: str, data: str, user: str, **options: Any) -> None:
        """Make the request, and print its hops.

        Raises:
            CommandError: the path or the user is wrong, or the start-up failed.
            Exception: the project cannot be loaded, or the request failed.
        """
        if not path.startswith("/"):
            raise CommandError(f"{path!r} is not a path: it must begin with a slash.")
        method = (options["method"] or ("POST" if data else "GET")).upper()
        environ = {"CONTENT_TYPE": options["content_type"]} if data else {}
        named = getattr(settings, "ASGI_APPLICATION", None)
        found = import_string(named) if named else None
        found = getattr(found, "application", found)  # below static files
        handler: Any = found if isinstance(found, ASGIHandler) else ASGIHandler()
        if not hasattr(handler, "last_hops"):
            record_hops(handler)
        with _session_of(user) as cookies:
            scope = _scope(path, method, environ, cookies)
            status = trio.run(_request, handler, scope, data.encode())
        hops = handler.last_hops
        count = f"{len(hops) or 'no'} hop{'' if len(hops) == 1 else 's'}"
        self.stdout.write(f"{method} {path} -> {status}\n{count}")
        for number, hop in enumerate(hops, 1):
            name = f"hop {number}" + (hop.place and f", {hop.place}")
            took, waited = 1000 * hop.seconds, 1000 * (hop.began - hop.asked)
            times = f"{took:.1f} ms, after {waited:.1f} ms of waiting"
            self.stdout.write(f"\n{name}: {times}")
            for cause in hop.causes:
                advice = advice_for(cause)
                self.stdout.write(f"  {cause}" + (advice and f"\n    {advice}"))
        self.stdout.write("\nThe page's changes in the database were not rolled back.")


async def _request(handler: ASGIHandler, scope: Scope, body: bytes) -> object:
    """Make a request within the application's lifespan; return the status.

    Raises:
        CommandError: the application could not be started.
        Exception: the application has raised it.
    """
    status: object = f"no answer in {SECONDS} s"
    lifespan = {"type": "lifespan", "asgi": scope["asgi"], "state": {}}
    async with ApplicationCommunicator(handler, lifespan) as server:
        await server.send_input({"type": "lifespan.startup"})
        started = await server.receive_output(math.inf)
        if "message" in started:
            raise CommandError(f"The start-up failed. {started['message']}")
        async with ApplicationCommunicator(handler, scope) as client:
            await client.send_input({"type": "http.request", "body": body})
            with trio.move_on_after(SECONDS):
                status = (await client.receive_output(math.inf))["status"]
                while (await client.receive_output(math.inf)).get("more_body"):
                    pass
                await client.wait(math.inf)
        await server.send_input({"type": "lifespan.shutdown"})
        await server.receive_output(math.inf)
    return status


def _scope(path: str, method: str, environ: dict[str, str], cookies: Any) -> Scope:
    """Return the scope of a request that Django's own middleware lets pass.

    It comes over HTTPS, because ``SECURE_SSL_REDIRECT`` would redirect it otherwise, to
    a host that is allowed, and has the token of a form.
    """
    host = (settings.ALLOWED_HOSTS or ["localhost"])[0].lstrip(".")
    environ["HTTP_HOST"] = host = "localhost" if host == "*" else host
    if settings.SECURE_PROXY_SSL_HEADER:
        environ.update([settings.SECURE_PROXY_SSL_HEADER])
    if method != "GET":
        token = cookies[settings.CSRF_COOKIE_NAME] = get_random_string(32)
        environ[settings.CSRF_HEADER_NAME] = token
        environ["HTTP_ORIGIN"] = f"https://{host}"
    if cookies:
        environ["HTTP_COOKIE"] = "; ".join(map("=".join, cookies.items()))
    headers = HttpHeaders(environ)
    return http_scope(path, method=method, headers=headers, scheme="https")


@contextmanager
def _session_of(name: str | None) -> Iterator[dict[str, str]]:
    """Store a session of a user during the block; return its cookie.

    Raises:
        CommandError: there is no such user.
    """
    if name is None:
        yield {}
        return
    try:
        user: Any = auth.get_user_model()._default_manager.get_by_natural_key(name)
    except ObjectDoesNotExist as error:
        raise CommandError(f"There is no user {name!r}.") from error
    session = import_module(settings.SESSION_ENGINE).SessionStore()
    session[auth.SESSION_KEY] = user._meta.pk.value_to_string(user)
    session[auth.HASH_SESSION_KEY] = user.get_session_auth_hash()
    paths = settings.AUTHENTICATION_BACKENDS
    backend = next(path for path in paths if hasattr(import_string(path), "get_user"))
    session[auth.BACKEND_SESSION_KEY] = backend
    session.save()
    try:
        yield {settings.SESSION_COOKIE_NAME: session.session_key}
    finally:
        session.delete()
