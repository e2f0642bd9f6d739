"""``manage.py runserver`` on Trio, in a terminal, as developers use it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest

from ._runserver import manage, write_project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._runserver import Terminal

CTRL_C = "\x03"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the directory of a small project."""
    return write_project(tmp_path)


def end(server: Terminal) -> None:
    """Press Ctrl-C, and wait for the end."""
    server.type(CTRL_C)
    assert server.wait_for_end() == 0, server.output


@contextmanager
def open_stream(client: httpx.Client) -> Iterator[None]:
    """Read the first line of an event stream, which stays open in the block."""
    with client.stream("GET", "/events/") as stream:
        lines = stream.iter_lines()  # which would close the stream at its end
        assert next(lines) == "data: event"
        yield


def test_what_it_prints(project: Path) -> None:
    """Django's text, what is served, and a coloured line for each request."""
    with manage(project, "runserver", "0", "--noreload") as server:
        client = server.wait_until_serving()
        assert "Performing system checks..." in server.output
        assert "asgi.application runs on Trio, served by hypercorn." in server.output
        assert "Quit the server with CONTROL-C." in server.output
        assert "WSGI development" not in server.output

        client.get("/hello/?a=b%1B")
        server.wait_for(r'\[\d\d/\w{3}/\d{4} [\d:]{8}\].*"GET /hello/\?a=b%1B HTTP/1.1')
        server.wait_for('" 200 5\x1b')
        lost = client.post("/nowhere/")
        assert lost.status_code == 404
        # Yellow, as Django has it.
        size = len(lost.content)
        server.wait_for(f'\x1b\\[33m"POST /nowhere/ HTTP/1.1" 404 {size}\x1b\\[0m')
        client.head("/hello/")
        server.wait_for('"HEAD /hello/ HTTP/1.1" 200 0')
        address = client.base_url.host, client.base_url.port
        with socket.create_connection(address) as leaving:
            leaving.sendall(b"GET /wait/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            server.wait_for("waiting")
        server.wait_for(r'"GET /wait/ HTTP/1.1" - 0 \(the client left\)')
        with open_stream(client):
            pass
        server.wait_for(r'"GET /events/ HTTP/1.1" 200 \d+ \(the client left\)')
        end(server)


def test_without_colours(project: Path) -> None:
    """``--no-color`` works as with Django's command."""
    with manage(project, "runserver", "0", "--noreload", "--no-color") as server:
        server.wait_until_serving().get("/nowhere/")
        server.wait_for(r'\] "GET /nowhere/ HTTP/1.1" 404 \d+\r\n')
        end(server)


def test_requests_run_at_the_same_time(project: Path) -> None:
    """A sync and an async view wait for each other, beside an open event stream."""
    with manage(project, "runserver", "--nothreading", "0", "--noreload") as server:
        client = server.wait_until_serving()
        assert server.output.count("--nothreading is ignored") == 1
        answers: list[str] = []

        def get_first() -> None:
            answers.append(client.get("/first/").text)

        with open_stream(client):
            thread = threading.Thread(target=get_first)
            thread.start()
            assert client.get("/second/").text == "second"
            thread.join()
        assert answers == ["first"]
        end(server)


@pytest.mark.parametrize("reload", [True, False])
def test_ctrl_c(project: Path, reload: bool) -> None:
    """Neither an open stream nor a background task keeps the lifespan from ending."""
    arguments = ["runserver", "0"] if reload else ["runserver", "0", "--noreload"]
    with manage(project, *arguments) as server:
        client = server.wait_until_serving()
        assert client.get("/task/").text == "started"
        with open_stream(client):
            end(server)
    assert "lifespan ends" in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_the_parent_alone(project: Path, number: signal.Signals) -> None:
    """The process that serves is told, too, and ends its lifespan."""
    with manage(project, "runserver", "0") as server:
        server.wait_until_serving()
        os.kill(server.pid, number)
        assert server.wait_for_end() == 0
    assert "lifespan ends" in server.output


@pytest.mark.parametrize("reload", [True, False])
def test_a_shutdown_that_does_not_end(project: Path, reload: bool) -> None:
    """The process ends all the same, and says so."""
    arguments = ["runserver", "0"] if reload else ["runserver", "0", "--noreload"]
    with manage(project, *arguments, STUCK="1") as server:
        server.wait_until_serving()
        end(server)
    assert "has not shut down within 2 seconds" in server.output


def test_files_are_edited(project: Path) -> None:
    """The server restarts, and survives errors in a view and in ``asgi.py``."""
    with manage(project, "runserver", "0") as server:
        assert server.wait_until_serving().get("/hello/").text == "hello"
        server.edit("views.py", '("hello")', '("hello"')
        server.wait_for("lifespan ends")
        server.wait_for("SyntaxError")
        server.edit("views.py", '("hello"', '("back again")')
        assert server.wait_until_serving().get("/hello/").text == "back again"

        server.edit("asgi.py", "import os, trio", "import os, trio, nothing")
        server.wait_for("Cannot import ASGI_APPLICATION = 'asgi.application':")
        server.wait_for("No module named 'nothing'")
        server.edit("asgi.py", "import os, trio, nothing", "import os, trio")
        assert server.wait_until_serving().get("/hello/").text == "back again"
        end(server)


@contextmanager
def at_prompt(
    server: Terminal, get: Callable[..., object], *args: object
) -> Iterator[None]:
    """Run the block at pdb's prompt, while ``get(*args)`` waits; then join it."""
    thread = threading.Thread(target=get, args=args)
    thread.start()
    server.wait_for(r"\(Pdb\) ")
    yield
    thread.join()


def get_nothing(client: httpx.Client, path: str) -> None:
    """Make a request that the server's end cuts off."""
    with pytest.raises(httpx.HTTPError):
        client.get(path)


@pytest.mark.parametrize("reload", [True, False])
def test_breakpoints(project: Path, reload: bool) -> None:
    """pdb works in both kinds of views, and Ctrl-C at its prompt ends the server."""
    arguments = ["runserver", "0"] if reload else ["runserver", "0", "--noreload"]
    with manage(project, *arguments) as server:
        client = server.wait_until_serving()
        answers: list[str] = []

        def get(path: str) -> None:
            answers.append(client.get(path).text)

        for view in ["debug", "adebug"]:
            with at_prompt(server, get, f"/{view}/"):
                server.type("p request.path\r")
                server.wait_for(f"'/{view}/'")
                server.wait_for(r"\(Pdb\) ")
                server.type("c\r")
            server.wait_for(f'"GET /{view}/ HTTP/1.1" 200 8')
        assert answers == ["debugged", "debugged"]
        assert server.modes == server.modes_at_start

        with open_stream(client), at_prompt(server, get_nothing, client, "/debug/"):
            end(server)
        assert server.modes == server.modes_at_start


def test_ctrl_c_after_a_breakpoint(project: Path) -> None:
    """pdb does not keep Ctrl-C for itself, and not in an async view at its prompt."""
    with manage(project, "runserver", "0", "--noreload") as server:
        client = server.wait_until_serving()
        with at_prompt(server, client.get, "/adebug/"):
            server.type("c\r")
        end(server)
    assert "lifespan ends" in server.output


def test_ctrl_c_while_the_loop_is_blocked(project: Path) -> None:
    """At a breakpoint in an async view, the server ends after two seconds."""
    with manage(project, "runserver", "0", "--noreload") as server:
        client = server.wait_until_serving()
        with at_prompt(server, get_nothing, client, "/adebug/"):
            end(server)
        assert server.modes == server.modes_at_start


def test_static_files(project: Path) -> None:
    """The finders' files are served, unless they should not be."""
    with manage(project, "runserver", "0", "--noreload") as server:
        client = server.wait_until_serving()
        assert client.get("/static/style.css").text == "body { color: teal }"
        assert client.get("/static/none.css").status_code == 404
        end(server)
    for arguments, env, status in [
        (["--nostatic"], {}, 404),
        (["--insecure"], {"NO_DEBUG": "1"}, 200),
    ]:
        with manage(
            project, "runserver", "0", "--noreload", *arguments, **env
        ) as server:
            client = server.wait_until_serving()
            assert client.get("/static/style.css").status_code == status
            end(server)


def test_ipv6(project: Path) -> None:
    """An address of IPv6 is served and printed as Django does."""
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
    except OSError:
        pytest.skip("there is no IPv6 here")
    with manage(project, "runserver", "-6", "[::1]:0", "--noreload") as server:
        client = server.wait_until_serving()
        assert client.base_url.host == "::1"
        assert client.get("/hello/").text == "hello"
        end(server)


def test_a_port_in_use(project: Path) -> None:
    """That is an error of one line."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with manage(project, "runserver", port) as server:
            assert server.wait_for_end() == 1
    assert "Error: That port is already in use." in server.output
    assert "Traceback" not in server.output


def test_the_smallest_settings(project: Path) -> None:
    """Neither ``ASGI_APPLICATION`` nor the app of static files is needed."""
    env = {"NO_ASGI_APPLICATION": "1", "APPS": "trio_asgi"}
    with manage(project, "runserver", "0", "--noreload", **env) as server:
        url = server.wait_for(r"development server at (http://\S+)/\r\n")[1]
        assert httpx.get(f"{url}/hello/", trust_env=False).text == "hello"
        static = httpx.get(f"{url}/static/style.css", trust_env=False)
        assert static.status_code == 404
        end(server)
    assert "get_asgi_application() runs on Trio" in server.output


@pytest.mark.parametrize(
    ("line", "better"),
    [
        ("from django.core.asgi import get_asgi_application", "get_asgi_application"),
        (
            "from trio_asgi import get_asgi_application\n"
            "from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler",
            "ASGIStaticFilesHandler",
        ),
        (
            "from trio_asgi import ASGIStaticFilesHandler\n"
            "from django.core.asgi import get_asgi_application",
            "get_asgi_application",
        ),
    ],
)
def test_an_application_that_is_not_converted(
    project: Path, line: str, better: str
) -> None:
    """The error names the file and the line, and what to write."""
    make = "get_asgi_application()"
    if "Static" in line:
        make = f"ASGIStaticFilesHandler({make})"
    (project / "asgi.py").write_text(f"\n{line}\napplication = {make}\n")
    with manage(project, "runserver", "0", "--noreload") as server:
        assert server.wait_for_end() == 1
    number = 2 + line.count("\n")
    assert "asgi.application is Django's own handler" in server.output
    assert f"Write in {project / 'asgi.py'}, line {number}:" in server.output
    assert f"    from trio_asgi import {better}\r\n" in server.output
    assert "Traceback" not in server.output


def test_a_start_up_that_fails(project: Path) -> None:
    """The reason is shown, and the command fails."""
    with manage(project, "runserver", "0", "--noreload", FAIL="1") as server:
        assert server.wait_for_end() == 1
    assert "in lifespan" in server.output  # of the traceback
    assert "CommandError: The application has ended." in server.output
    assert "ValueError: no tea" in server.output.partition("CommandError")[2]


def test_a_start_up_is_mended(project: Path) -> None:
    """Meanwhile nothing listens: a browser gets an error, rather than no answer."""
    with manage(project, "runserver", "0", FAIL="1") as server:
        port = int(server.wait_for(r"http://127.0.0.1:(\d+)/")[1])
        server.wait_for("CommandError: The application has ended.")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        server.edit("asgi.py", 'raise ValueError("no tea")', "pass")
        assert server.wait_until_serving().get("/hello/").text == "hello"
        end(server)


def test_a_wrong_setting(project: Path) -> None:
    """The error names the setting."""
    with manage(
        project, "runserver", "0", "--noreload", ASGI_APPLICATION="asgi.app"
    ) as server:
        assert server.wait_for_end() == 1
    assert "Cannot import ASGI_APPLICATION = 'asgi.app':" in server.output
    assert 'does not define a "app"' in server.output


def test_no_hypercorn(project: Path) -> None:
    """The error says what to install, before any process is started."""
    with manage(project, "runserver", "0", WITHOUT_HYPERCORN="1") as server:
        assert server.wait_for_end() == 1
    assert server.output.count("pip install 'hypercorn>=0.18'") == 1
    assert "Traceback" not in server.output


def test_the_order_of_the_apps(project: Path) -> None:
    """The first app that has the command decides, as in Django."""
    apps = ["trio_asgi", "other", "django.contrib.staticfiles"]
    with manage(project, "runserver", "--help", APPS=" ".join(apps)) as server:
        assert server.wait_for_end() == 0
    assert "on Trio" in server.output
    apps = ["other", "trio_asgi", "django.contrib.staticfiles"]
    with manage(project, "runserver", APPS=" ".join(apps)) as server:
        assert server.wait_for_end() == 0
    assert "the other app's runserver" in server.output


@pytest.mark.parametrize("first", ["trio_asgi", "django.contrib.staticfiles"])
def test_the_check(project: Path, first: str) -> None:
    """A warning says that Django's command is used."""
    apps = sorted(["trio_asgi", "django.contrib.staticfiles"], key=first.__ne__)
    with manage(project, "check", APPS=" ".join(apps)) as server:
        assert server.wait_for_end() == 0
    assert ("trio_asgi.W001" in server.output) == (first != "trio_asgi")
