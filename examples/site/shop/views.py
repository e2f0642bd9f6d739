"""The pages. Async views are Trio functions; sync views are as in any project."""

import hashlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from operator import attrgetter
from uuid import UUID, uuid4

import httpx
import trio
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import messages
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

import trio_asgi

from .forms import AdviceForm, OrderForm, QuoteForm, UploadForm
from .load import Counter, figures, figures_on_asyncio
from .market import Market
from .models import Order, Supplier, Upload
from .progress import ProgressHandler
from .tea_master import TeaMaster

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

# Each page says who is signed in. That needs the database, so async views
# render their template in the request's thread.
arender = sync_to_async(render)

PLAIN_TEXT = "text/plain; charset=utf-8"

exchange = Market()
master = TeaMaster()
reports = Counter()
# All requests share it: making one takes long, and it keeps connections open.
client = httpx.AsyncClient(trust_env=False)


def home(request: HttpRequest) -> HttpResponse:
    """List the pages."""
    return render(request, "shop/home.html")


class SupplierError(Exception):
    """A supplier's web site failed."""


@dataclass
class Quote:
    """A supplier's answer: the total is None until it comes."""

    supplier: Supplier
    fails: bool = False
    failed: bool = False
    total: Decimal | None = None
    seconds: float = 0

    async def ask(self, kilos: int) -> None:
        """Pretend to ask the supplier's web site."""
        started = trio.current_time()
        try:
            await trio.sleep(self.supplier.latency)
            if self.fails:
                self.failed = True
                raise SupplierError(self.supplier)
            self.total = self.supplier.price * kilos
        finally:  # also when the nursery cancels this task
            self.seconds = trio.current_time() - started


async def ask_all(kilos: int, patience: float, *, outage: bool) -> list[Quote]:
    """Ask all suppliers at once, and wait for so many seconds at most."""
    answers = [
        Quote(supplier, fails=outage and supplier.name == "Nilgiri Growers")
        async for supplier in Supplier.objects.all()
    ]
    try:
        # No task outlives this block: not after the deadline, not
        # when another one fails, not when the visitor leaves.
        with trio.move_on_after(patience):
            async with trio.open_nursery() as nursery:
                for quote in answers:
                    nursery.start_soon(quote.ask, kilos)
    except ExceptionGroup as group:  # Python 3.11: except* SupplierError
        if others := group.split(SupplierError)[1]:
            raise others from None
    return answers


async def quotes(request: HttpRequest) -> HttpResponse:
    """Compare the suppliers' prices for so many kilos."""
    form = QuoteForm(request.GET or {"kilos": 10, "patience": "1.0"})
    context: dict[str, object] = {"form": form}
    if form.is_valid():
        answers = await ask_all(**form.cleaned_data)
        in_time = [quote for quote in answers if quote.total is not None]
        context |= {
            "elapsed": max((quote.seconds for quote in answers), default=0),
            "one_by_one": sum(quote.supplier.latency for quote in answers),
            "in_time": sorted(in_time, key=attrgetter("total")),
            "late": [quote for quote in answers if quote.total is None],
            "failed": any(quote.failed for quote in answers),
        }
    return await arender(request, "shop/quotes.html", context)


def market(request: HttpRequest) -> HttpResponse:
    """Show the page; its script listens to prices()."""
    return render(request, "shop/market.html")


async def prices(request: HttpRequest) -> trio_asgi.EventStream:
    """Stream the prices while the visitor watches."""
    return trio_asgi.EventStream(exchange.watch())


def advice(request: HttpRequest) -> HttpResponse:
    """Show the form; its script reads answer() as it comes."""
    return render(request, "shop/advice.html", {"form": AdviceForm()})


async def answer(request: HttpRequest) -> StreamingHttpResponse:
    """Pass on what the tea master says, word by word."""
    host, port = request.scope["server"]
    url = f"http://{host}:{port}{reverse('tea_master')}"
    words = ask_tea_master(url, request.GET.get("tea", ""))
    return StreamingHttpResponse(words, content_type=PLAIN_TEXT)


async def ask_tea_master(url: str, tea: str) -> AsyncIterator[str]:
    """Ask over HTTP. When the visitor leaves, the connection is closed."""
    async with client.stream("GET", url, params={"tea": tea}) as response:
        response.raise_for_status()
        async for words in response.aiter_text():
            yield words


async def tea_master(request: HttpRequest) -> StreamingHttpResponse:
    """Be the other server: think of each word, and count the listeners."""
    words = master.explain(request.GET.get("tea", ""))
    return StreamingHttpResponse(words, content_type=PLAIN_TEXT)


async def tea_master_work(request: HttpRequest) -> trio_asgi.EventStream:
    """Stream how many listen to the tea master, and how many words he has said."""
    return trio_asgi.EventStream(master.watch())


@trio_asgi.stream_body
@trio_asgi.limit_body(max_size=20 * 2**30)
async def uploads(request: HttpRequest) -> HttpResponse:
    """Take a file that the upload handlers write to disk while it arrives."""
    await request.aread()
    form = UploadForm(request.POST or None, request.FILES or None)
    if form.is_valid():
        file = form.cleaned_data["file"]  # is deleted with the request
        await Upload.objects.acreate(
            name=file.name,
            size=file.size,
            sha256=await trio.to_thread.run_sync(fingerprint, file),
        )
        messages.success(request, f"{file.name} has arrived.")
        return redirect("uploads")
    recent = [upload async for upload in Upload.objects.all()[:8]]
    context = {"form": form, "recent": recent, "key": uuid4()}
    return await arender(request, "shop/uploads.html", context)


def fingerprint(file: UploadedFile) -> str:
    """Hash a file. Runs in a thread, because the file may be big."""
    digest = hashlib.sha256()
    for chunk in file.chunks():
        # A thread cannot be stopped, but it can check. This raises.
        trio.from_thread.check_cancelled()
        digest.update(chunk)
    return digest.hexdigest()


async def progress(request: HttpRequest, key: UUID) -> JsonResponse:
    """Say how much of another request's upload has arrived."""
    return JsonResponse(await ProgressHandler.aget(key))


def orders(request: HttpRequest) -> HttpResponse:
    """Keep the order book, with a plain sync view."""
    form = OrderForm(request.POST or None)
    if form.is_valid():
        order = form.save(commit=False)
        if request.user.is_authenticated:
            order.user = request.user
        order.save()
        messages.success(request, f"Ordered: {order}.")
        return redirect("orders")
    book = Order.objects.select_related("user")[:20]
    context = {"form": form, "book": book}
    return render(request, "shop/orders.html", context)


def load(request: HttpRequest) -> HttpResponse:
    """Show the page; its script listens to load_figures()."""
    return render(request, "shop/load.html", {"other": settings.COMPARE_WITH})


def report(request: HttpRequest) -> StreamingHttpResponse:
    """Send a report that takes twenty seconds: sync code, as in any project."""
    return StreamingHttpResponse(report_lines(), content_type="text/csv")


def report_lines() -> Iterator[str]:
    """Make the lines, in a thread and with its database connection."""
    with reports:  # counts those that are being made
        orders = Order.objects.count()
        for line in range(80):
            yield f"{line},{orders}\n"
            time.sleep(0.25)  # stands for a slow query


@require_POST
async def load_visitors(request: HttpRequest, server: str) -> HttpResponse:
    """Be 200 visitors of the report, until the real one drops them."""
    this = request.scope["server"]
    host, port = this if server == "trio" else settings.COMPARE_WITH
    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(read_report, host, port)
    return HttpResponse(status=204)


async def read_report(host: str, port: int) -> None:
    """Ask for the report, and read it to its end."""
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"GET /load/report/ HTTP/1.0\r\n\r\n")
        async for _ in stream:
            pass


async def load_figures(request: HttpRequest) -> trio_asgi.EventStream:
    """Stream what both servers do, five times a second."""
    return trio_asgi.EventStream(figures(reports, client))


@trio_asgi.asyncio_island  # it asks asyncio for its tasks
async def load_on_asyncio(request: HttpRequest) -> JsonResponse:
    """Say what this process does under Django's own handler."""
    return JsonResponse(figures_on_asyncio(reports))
