"""Views that tell where they are, and those of the hosted site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sniffio
import trio
from django.contrib.auth.models import User
from django.http import HttpResponse, JsonResponse
from django.urls import include, path, reverse

from . import journal

if TYPE_CHECKING:
    from django.http import HttpRequest


async def where(request: HttpRequest) -> JsonResponse:
    """Tell where the site is mounted, from two tasks."""
    found = {}

    async def look(name: str, what: str) -> None:
        await trio.lowlevel.checkpoint()
        found[name] = what

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, "reverse", reverse("where"))
        nursery.start_soon(look, "path_info", request.path_info)
    found |= {
        "caller": journal.caller.get(),
        "library": sniffio.current_async_library(),
    }
    journal.caller.set("the view")
    return JsonResponse(found)


def users(request: HttpRequest) -> JsonResponse:
    """Add a user, and list all."""
    User.objects.create(username=request.GET["id"])
    names = User.objects.order_by("username").values_list("username", flat=True)
    return JsonResponse({"users": list(names), "reverse": reverse("users")})


async def background(request: HttpRequest) -> HttpResponse:
    """Start a task that lasts until it is cancelled."""
    from . import mounted_asgi  # noqa: PLC0415 - it imports this module

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            journal.note("background ended", request)

    mounted_asgi.lasting.start_soon(wait)
    return HttpResponse("begun")


urlpatterns = [
    path("where/", where, name="where"),
    path("users/", users, name="users"),
    path("background/", background),
    path("", include("hosted.urls")),
]
