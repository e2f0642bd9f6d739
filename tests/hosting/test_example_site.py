"""The example site does what its pages say, served as its README says."""

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from ._browser import browser
from ._wire import Connection

ROOT = Path(__file__).parents[2]
SITE = ROOT / "examples" / "site"

# Events that a stream may send before the one that a test waits for. The server sends
# one each second; a loaded machine notices a disconnect late.
PATIENCE = 30


def manage(database: Path, *command: str) -> str:
    """Run one of the site's management commands and return what it prints."""
    done = subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=SITE,
        env=environment(database),
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


def environment(database: Path) -> dict[str, str]:
    """Provide the environment of the site's processes."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "TEAHOUSE_DB": str(database),
        "TEAHOUSE_MEDIA": str(database.with_name("media")),
        "DJANGO_SETTINGS_MODULE": "teahouse.settings",
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a database that setup_demo made."""
    path = tmp_path_factory.mktemp("teahouse") / "db.sqlite3"
    manage(path, "setup_demo")
    return path


def wait_until(check: Callable[[], object]) -> None:
    """Call ``check`` until it returns something true."""
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def media(database: Path) -> Path:
    """Return the directory of the site's files."""
    path = database.with_name("media")
    path.mkdir(exist_ok=True)
    return path


def wait_for_address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Return the server's address, once it is printed."""
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        if found := re.search(r"Running on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.02)
    pytest.fail("the server did not start:\n" + log.read_text())


@contextmanager
def serve(
    database: Path, module: str, *options: str, compare_with: str = "127.0.0.1:1"
) -> Iterator[str]:
    """Serve the site with hypercorn, in one process. Nothing listens at port 1."""
    address = compare_with.removeprefix("http://")
    log = database.with_name(f"{module}.log")
    command = [sys.executable, "-m", "hypercorn", "--workers", "0", *options]
    command += ["--bind", "127.0.0.1:0", f"teahouse.{module}:application"]
    # A file rather than a pipe, which would fill up if nothing reads it.
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            cwd=SITE,
            env={**environment(database), "TEAHOUSE_COMPARE": address},
            stderr=output,
        )
        try:
            yield wait_for_address(server, log)
        finally:
            # Django's own handler would make its reports first.
            server.terminate() if "trio" in options else server.kill()
            server.wait(timeout=60)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def site(database: Path) -> Iterator[str]:
    """Serve the site with hypercorn on Trio, and return its address."""
    with serve(database, "asgi", "-k", "trio") as address:
        yield address


@pytest.fixture
def client(site: str) -> Iterator[httpx.Client]:
    """Open a client that keeps cookies and follows redirects, like a browser."""
    with httpx.Client(
        base_url=site, follow_redirects=True, timeout=30, trust_env=False
    ) as client:
        yield client


def token(page: httpx.Response) -> dict[str, str]:
    """Return the CSRF field of the last form on a page."""
    found = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    return {"csrfmiddlewaretoken": found[-1]}


def sign_in(client: httpx.Client, path: str = "/") -> httpx.Response:
    """Sign in as demo on the site's page for it, and return the resulting URL."""
    page = client.get("/accounts/login/", params={"next": path})
    fields = {"username": "demo", "password": "demo", "next": path}
    return client.post("/accounts/login/", data=token(page) | fields)


def watchers(stream: httpx.Response) -> Iterator[int]:
    """Yield the number of watchers whenever a stream of prices reports it."""
    for line in stream.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))["watchers"]


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("/", "A tea house, run on Trio"),
        ("/quotes/", "Ask every supplier"),
        ("/market/", "The market, live"),
        ("/advice/", "Ask the tea master"),
        ("/uploads/", "Send a file"),
        ("/orders/", "The order book"),
        ("/load/", "Two hundred visitors leave"),
        ("/accounts/login/", "Sign in"),
    ],
)
def test_every_page_answers(client: httpx.Client, path: str, heading: str) -> None:
    """Each page of the site can be seen by a guest."""
    page = client.get(path)
    assert page.status_code == 200
    assert f"<h1>{heading}</h1>" in page.text


def test_pages_show_their_source(client: httpx.Client) -> None:
    """A page shows the function behind it, markup escaped."""
    code = client.get("/orders/").text.partition("<pre")[2].partition("</pre>")[0]
    assert "orders(request: HttpRequest) -&gt; HttpResponse:" in re.sub(
        r"</?span[^>]*>", "", code
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("shop/style.css", "text/css"),
        ("shop/cup.svg", "image/svg+xml"),
        ("shop/advice.js", "javascript"),
        ("shop/live.js", "javascript"),
        ("shop/load.js", "javascript"),
        ("shop/market.js", "javascript"),
        ("shop/uploads.js", "javascript"),
        ("admin/css/base.css", "text/css"),
    ],
)
def test_static_files(client: httpx.Client, path: str, kind: str) -> None:
    """The site's own static files and the admin's come from the same process."""
    file = client.get(f"/static/{path}")
    assert file.status_code == 200
    # How Python calls JavaScript depends on its version.
    assert kind in file.headers["content-type"]
    assert file.content


def test_quotes_come_at_the_deadline(client: httpx.Client) -> None:
    """Fast suppliers are quoted; slow ones are given up after a second."""
    page = client.get("/quotes/", params={"kilos": 3, "patience": "1.0"}).text
    found = re.search(r'id="elapsed">([\d.]+) s<', page)
    assert found is not None
    # The slowest supplier takes 4.5 seconds, all of them together take 9.
    assert 1 <= float(found[1]) < 4.5
    shown = suppliers(page)
    assert shown["Blue Kettle"] == "€ 67.20"
    assert shown["The Last Caravan"] == "no answer in time"


def suppliers(page: str) -> dict[str, str]:
    """Return what the page says of each supplier."""
    row = r'"name">(.*?) <small>.*?"total">(?:<.*?/span> )?(.*?)</span>'
    return dict(re.findall(row, page, re.DOTALL))


def test_a_supplier_that_fails(client: httpx.Client) -> None:
    """Suppliers that have answered are shown; the others are cancelled at once."""
    page = client.get("/quotes/?kilos=3&patience=2.0&outage=on").text
    shown = suppliers(page)
    assert shown["Blue Kettle"] == "€ 67.20"
    assert shown["Nilgiri Growers"] == "failed"
    assert shown["The Last Caravan"] == "cancelled"
    found = re.search(r'id="elapsed">([\d.]+) s<', page)
    assert found is not None
    # That is when it fails; with the others, it would take two seconds.
    assert 0.7 <= float(found[1]) < 2


def test_quotes_refuse_nonsense(client: httpx.Client) -> None:
    """The form reports a mistake, and no supplier is asked."""
    page = client.get("/quotes/", params={"kilos": 0, "patience": "1.0"}).text
    assert "greater than or equal to 1" in page
    assert "No supplier was asked." in page
    assert 'id="elapsed"' not in page


def test_guest_orders(client: httpx.Client) -> None:
    """An order of a guest is stored, confirmed once and listed."""
    order = {"tea": "oolong", "kilos": "7", "note": "Tins <please>"}
    fields = token(client.get("/orders/")) | order
    page = client.post("/orders/", data=fields)
    # Redirect after post: reloading the page does not order again.
    assert [step.status_code for step in page.history] == [302]
    assert "Ordered: 7 kg of Oolong." in page.text
    assert "<td>a guest</td><td>Tins &lt;please&gt;</td>" in page.text
    assert "Ordered: 7 kg" not in client.get("/orders/").text


def test_order_needs_its_csrf_token(client: httpx.Client) -> None:
    """A form that did not come from the site is refused."""
    answer = client.post("/orders/", data={"tea": "oolong", "kilos": "7"})
    assert answer.status_code == 403


def test_signed_in_order(client: httpx.Client) -> None:
    """An order by a signed-in user carries their name."""
    page = sign_in(client, "/orders/")
    assert "You order as <strong>demo</strong>" in page.text
    order = {"tea": "sencha", "kilos": "9", "note": "For demo"}
    page = client.post("/orders/", data=token(page) | order)
    assert "<td>demo</td><td>For demo</td>" in page.text


def test_sign_in_and_out(client: httpx.Client) -> None:
    """Async pages know the signed-in user, and no longer after signing out."""
    assert "<strong>demo</strong>" in sign_in(client).text
    page = client.get("/quotes/", params={"kilos": 1, "patience": "0.5"})
    assert "<strong>demo</strong>" in page.text
    page = client.post("/accounts/logout/", data=token(page))
    assert "Sign in</a>" in page.text


def test_wrong_password(client: httpx.Client) -> None:
    """A wrong password is refused."""
    fields = token(client.get("/accounts/login/"))
    fields |= {"username": "demo", "password": "oolong"}
    page = client.post("/accounts/login/", data=fields)
    assert "Please enter a correct username and password" in page.text


def test_admin(client: httpx.Client) -> None:
    """The admin asks a guest to sign in, and shows demo the shop's models."""
    assert client.get("/admin/").url.path == "/admin/login/"
    index = sign_in(client, "/admin/")
    assert index.url.path == "/admin/"
    assert "Site administration" in index.text
    suppliers = client.get("/admin/shop/supplier/").text
    assert "Rize Co-operative" in suppliers


def test_upload_is_fingerprinted(client: httpx.Client) -> None:
    """A file that is spooled to disk arrives whole: its SHA-256 matches."""
    content = os.urandom(1 << 20) * 6
    page = client.post(
        "/uploads/",
        data=token(client.get("/uploads/")),
        files={"file": ("leaves.bin", content)},
    )
    assert [step.status_code for step in page.history] == [302]
    assert "leaves.bin has arrived." in page.text
    assert hashlib.sha256(content).hexdigest() in page.text


def test_upload_without_a_file(client: httpx.Client) -> None:
    """A form without its file is shown again, with the reason."""
    page = client.post("/uploads/", data=token(client.get("/uploads/")))
    assert "This field is required." in page.text


def test_upload_needs_its_csrf_token(client: httpx.Client, media: Path) -> None:
    """An upload that did not come from the site is refused, and its file deleted."""
    answer = client.post("/uploads/", files={"file": ("leaves.bin", b"leaves")})
    assert answer.status_code == 403
    assert [*media.iterdir()] == []


def multipart(**fields: str) -> tuple[dict[str, str], bytes]:
    """Return a form's headers, and its body up to the content of a file."""
    boundary = "leaves"
    part = '--{}\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}'
    parts = [part.format(boundary, name, "", text) for name, text in fields.items()]
    parts.append(part.format(boundary, "file", '; filename="leaves.bin"', ""))
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return headers, "\r\n".join(parts).encode()


def progress_of(page: httpx.Response) -> str:
    """Return the URL where a page with an upload form polls the progress."""
    found = re.search(r'data-progress="([^"]+)"', page.text)
    assert found is not None
    return found[1]


def test_progress_of_an_upload(client: httpx.Client, media: Path) -> None:
    """Another request sees how much has arrived so far, by then on disk."""
    page = client.get("/uploads/")
    action = re.search(r'action="(\?progress=[^"]+)"', page.text)
    assert action is not None
    headers, start = multipart(**token(page))
    half, end = os.urandom(1 << 20), b"\r\n--leaves--\r\n"
    headers["Content-Length"] = str(len(start) + 2 * len(half) + len(end))
    seen: list[dict[str, int]] = []

    def body(site: httpx.Client) -> Iterator[bytes]:
        yield start
        yield half
        while not seen or not seen[-1]:
            seen.append(site.get(progress_of(page)).json())
        assert [file.suffix for file in media.iterdir()] == [".bin"]
        yield half
        yield end

    with httpx.Client(base_url=client.base_url, trust_env=False) as other:
        page_after = client.post(
            "/uploads/" + action[1], content=body(other), headers=headers
        )
        assert other.get(progress_of(page)).json() == {}
    assert "leaves.bin has arrived." in page_after.text
    assert hashlib.sha256(half + half).hexdigest() in page_after.text
    assert 0 < seen[-1]["received"] <= len(half)
    assert seen[-1]["total"] == int(headers["Content-Length"])
    assert [*media.iterdir()] == []


def test_upload_that_breaks_off(client: httpx.Client, media: Path) -> None:
    """A client that disconnects midway leaves nothing on disk."""
    headers, start = multipart(**token(client.get("/uploads/")))
    headers["Content-Length"] = "5000000"

    class LeaveError(Exception):
        """Breaks the upload off, as a browser does when its tab is closed."""

    def body() -> Iterator[bytes]:
        yield start
        yield os.urandom(1 << 20)
        wait_until(lambda: [*media.iterdir()])
        raise LeaveError

    with pytest.raises(LeaveError):
        client.post("/uploads/", content=body(), headers=headers)
    wait_until(lambda: not [*media.iterdir()])


def test_a_form_that_is_far_too_large(client: httpx.Client) -> None:
    """Only the page for uploads takes more than a megabyte."""
    note = {"note": "x" * (1 << 20)}
    answer = client.post("/orders/", data=token(client.get("/orders/")) | note)
    assert answer.status_code == 413


def test_market_counts_who_leaves(client: httpx.Client) -> None:
    """The number of watchers goes up when one connects, down when one disconnects."""
    with client.stream("GET", "/market/prices/") as staying:
        assert staying.headers["content-type"] == "text/event-stream"
        counts = watchers(staying)
        assert next(counts) == 1
        with client.stream("GET", "/market/prices/") as leaving:
            # Kept, because a generator that is garbage-collected closes its response.
            arrived = watchers(leaving)
            assert next(arrived) == 2
            assert 2 in islice(counts, PATIENCE)
        assert 1 in islice(counts, PATIENCE)


def test_a_browser_watches_the_market(client: httpx.Client) -> None:
    """A browser that shows the page counts as a watcher until another tab covers it."""
    with client.stream("GET", "/market/prices/") as staying:
        counts = watchers(staying)
        assert next(counts) == 1
        with browser(f"{client.base_url}/market/") as open_tab:
            assert 2 in islice(counts, PATIENCE)
            open_tab("about:blank")
            assert 1 in islice(counts, PATIENCE)


@contextmanager
def events(client: httpx.Client, path: str) -> Iterator[Iterator[Any]]:
    """Read a stream of events, from JSON."""
    with client.stream("GET", path) as stream:
        lines = filter(None, stream.iter_lines())
        yield (json.loads(line.removeprefix("data: ")) for line in lines)


def test_the_whole_advice(client: httpx.Client) -> None:
    """Without JavaScript, the answer is a page of plain text."""
    answer = client.get("/advice/answer/", params={"tea": "none"})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "I do not know that tea. "


def test_the_tea_master_stops(client: httpx.Client) -> None:
    """When the visitor leaves, the view's connection to the other server ends."""
    with events(client, "/tea-master/work/") as work:
        before = next(work)
        assert before["listeners"] == 0
        answer = client.stream("GET", "/advice/answer/", params={"tea": "assam"})
        with answer as stream:
            words = stream.iter_text()
            assert next(words).startswith("Assam")
            assert any(now["listeners"] == 1 for now in islice(work, PATIENCE))
        after = next(now for now in islice(work, PATIENCE) if not now["listeners"])
        # The answer has 74 words.
        assert 0 < after["words"] - before["words"] < 74
        assert [next(work), next(work)] == [after, after]


def open_visitors(site: str, server: str, client: httpx.Client) -> Connection:
    """Press the page's button for one of the two servers."""
    address = httpx.URL(site)
    sock = socket.create_connection((address.host, address.port or 80), timeout=60)
    connection = Connection(sock)
    csrf = client.cookies["csrftoken"]
    headers = (f"X-CSRFToken: {csrf}", f"Cookie: csrftoken={csrf}", "Content-Length: 0")
    connection.send_request(f"/load/visitors/{server}/", *headers, method="POST")
    return connection


def test_dropped_requests(database: Path) -> None:
    """Reports end when their visitors leave, while those of Django's handler go on."""
    with (
        serve(database, "asgi_django") as other,
        serve(database, "asgi", "-k", "trio", compare_with=other) as site,
        httpx.Client(base_url=site, timeout=60, trust_env=False) as client,
    ):
        client.get("/load/")  # sets the cookie
        with events(client, "/load/figures/") as figures:
            with (
                open_visitors(site, "trio", client),
                open_visitors(site, "asyncio", client),
            ):
                for now in figures:
                    there = now["asyncio"]  # None before its first answer
                    if there and now["trio"]["reports"] == there["reports"] == 200:
                        break
                here = now["trio"]
                assert min(here["tasks"], here["threads"], here["connections"]) >= 200
            for now in figures:
                here = now["trio"]
                # The threads that began the requests of the visitors may be kept.
                if not here["reports"] and not here["tasks"] and here["threads"] < 5:
                    break
            assert here["connections"] < 5
            # They take twenty seconds.
            assert now["asyncio"]["reports"] == 200


def test_no_server_to_compare_with(client: httpx.Client) -> None:
    """The page is told that Django's own handler does not run."""
    with events(client, "/load/figures/") as figures:
        now = next(figures)
    assert now["asyncio"] is None
    assert now["trio"]["reports"] == 0


def test_only_the_page_sends_visitors(client: httpx.Client) -> None:
    """Another site cannot make this one send 200 requests."""
    assert client.get("/load/visitors/trio/").status_code == 405
    assert client.post("/load/visitors/trio/").status_code == 403


def test_setup_demo_again(database: Path) -> None:
    """Running setup_demo again changes nothing and says the same."""
    before = manage(database, "dumpdata", "auth.user", "shop.supplier")
    assert "Sign in as demo, password demo" in manage(database, "setup_demo")
    assert manage(database, "dumpdata", "auth.user", "shop.supplier") == before
    assert manage(database, "setup_demo", "--verbosity", "0") == ""


def test_migrations_are_complete(database: Path) -> None:
    """The migrations match the models, whatever the version of Django."""
    assert "No changes" in manage(database, "makemigrations", "--check", "--dry-run")
