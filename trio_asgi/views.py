"""The page of tasks, for `trio_asgi.urls`."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import outcome
import trio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpResponse, JsonResponse
from django.shortcuts import resolve_url
from django.template import Context, Engine, Template
from django.urls import NoReverseMatch, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .islands.functions import trio_island
from .tasks import snapshot
from .threads.current import current_pool
from .threads.lease import Lease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest

T = TypeVar("T")

#: Seconds to wait for a thread of the usual limit, and then for one beyond it.
PATIENCE: Final = 1.0
LAST_PATIENCE: Final = 5.0


@trio_island
@never_cache
@require_safe
async def tasks(request: HttpRequest) -> HttpResponse:
    """Show staff what runs in this process: as a page, or as JSON.

    Anonymous users are sent to the login page, and others get 403. The user is looked
    up in the request's thread, or soon in another one, beyond all limits.
    """
    if not hasattr(request, "user"):
        raise ImproperlyConfigured(
            "The page of tasks needs to know the user: add SessionMiddleware and "
            "AuthenticationMiddleware to MIDDLEWARE."
        )
    user: Any = request.user
    try:
        known, staff = await _call_somehow(lambda: _standing_of(user))
    except trio.TooSlowError:
        message = "No thread could look up the user: the database does not answer."
        answer = HttpResponse(message, status=503, content_type="text/plain")
        # Django would need the request's thread to log the status.
        answer._has_been_logged = True  # type: ignore[attr-defined]
        return answer
    if not known:
        return _to_login(request)
    if not staff:
        raise PermissionDenied("Only staff may see what runs.")
    found = snapshot()
    wanted = request.GET.get("format")
    if wanted == "json" or (wanted is None and not request.accepts("text/html")):
        return JsonResponse(found)
    context = {**found, "reloads": "reload" in request.GET}
    for one in (*found["requests"], *found["background"]):
        one["rows"] = list(_rows(one["tasks"]))
    return HttpResponse(_template().render(Context(context)))


def _standing_of(user: Any) -> tuple[bool, bool]:
    """Return whether a user is signed in, and staff. Worker thread: may be a query."""
    staff = user.is_active and getattr(user, "is_staff", False)
    return user.is_authenticated, staff


async def _call_somehow(fn: Callable[[], T]) -> T:
    """Call ``fn()`` in the request's thread, or soon in another one.

    Raises:
        trio.TooSlowError: it has not ended in time.
        Exception: whatever ``fn`` raises.
    """
    with trio.move_on_after(PATIENCE):
        return await sync_to_async(fn)()
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()
    results: list[outcome.Outcome[T]] = []
    pool = current_pool()

    def call() -> None:
        results.append(outcome.capture(pool.run_tidily, fn))
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    # The last call of a lease needs no place. The thread ends with it: if the call does
    # not end, nobody must be given the thread.
    lease = Lease(pool)
    lease.retire = True
    lease.release(last=call)
    with trio.fail_after(LAST_PATIENCE):
        await done.wait()
    return results.pop().unwrap()


def _to_login(request: HttpRequest) -> HttpResponse:
    # Here, since it loads the models of users: projects without any may load the URLs.
    from django.contrib.auth.views import redirect_to_login  # noqa: PLC0415

    try:
        login = reverse("admin:login")
    except NoReverseMatch:
        login = resolve_url(settings.LOGIN_URL)
    return redirect_to_login(request.get_full_path(), login)


def _rows(nodes: list[dict[str, Any]], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a tree in order, each with its depth."""
    for node in nodes:
        yield {**node, "depth": depth}
        yield from _rows(node["tasks"], depth + 1)


@functools.cache
def _template() -> Template:
    file = Path(__file__).parent / "debugging/tasks.html"
    return Engine().from_string(file.read_text(encoding="utf-8"))
