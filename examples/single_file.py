"""A Trio program with a Django site in it: ``python single_file.py``."""

import trio
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

import trio_asgi

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1", "localhost"])
latest = {"seconds": 0}


async def count() -> None:
    while True:
        await trio.sleep(1)
        latest["seconds"] += 1


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"Up for {latest['seconds']} s\n")


async def async_view(request: HttpRequest) -> HttpResponse:
    await trio.sleep(0.1)
    return JsonResponse(latest)


urlpatterns = [path("", sync_view), path("json/", async_view)]


async def main() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await nursery.start(trio_asgi.serve, trio_asgi.get_asgi_application())


if __name__ == "__main__":
    trio.run(main)
