"""Fixtures: a server of each kind, shared by the tests of a module."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest

from ._hosts import HOSTS
from ._server import Certificates, Kind, Server, serve_cleanly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._server import Connect

if sys.platform == "win32":
    # Without SIGTERM and process groups, servers would have to be stopped differently.
    collect_ignore = [
        "test_bad_bodies.py",
        "test_disconnects.py",
        "test_event_stream.py",
        "test_files.py",
        "test_hostile_clients.py",
        "test_mounted.py",
        "test_requests.py",
        "test_runserver.py",
        "test_shutdown.py",
        "test_startup.py",
        "test_stuck.py",
        "test_uploads.py",
    ]


#: The hosts of the usual run; ``HOSTS=all`` in the environment tests all others, too.
SAMPLE = ["hypercorn", "anycorn", "uvicorn"]
CHOSEN = os.environ.get("HOSTS", " ".join(SAMPLE))


@pytest.fixture(
    scope="module", params=list(HOSTS) if CHOSEN == "all" else CHOSEN.split()
)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the servers that are to be tested."""
    kind = cast("Kind", request.param)
    if not HOSTS[kind].is_installed:
        pytest.skip(f"{kind} is not installed")
    return kind


@pytest.fixture(scope="module")
def server(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve the hosted site to all tests of a module."""
    with serve_cleanly(kind, tmp_path_factory.mktemp(kind)) as running:
        yield running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return a certificate of 127.0.0.1."""
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(
    kind: Kind, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Serve the hosted site over TLS."""
    if "certfile" not in HOSTS[kind].names:
        pytest.skip(f"{kind}: it has no option for a certificate")
    directory = tmp_path_factory.mktemp(kind)
    with serve_cleanly(kind, directory, certificates=certificates) as running:
        yield running


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """A function that opens connections; any left open are closed at the end."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(server.connect())


@pytest.fixture(autouse=True)
def skip_what_the_server_cannot(request: pytest.FixtureRequest) -> None:
    """Skip a test marked ``demands(what)`` on a server that cannot do that."""
    for mark in request.node.iter_markers("demands"):
        kind = request.getfixturevalue("kind")
        reason = HOSTS[kind].cannot.get(mark.args[0])
        if reason is not None:
            pytest.skip(f"{kind}: {reason}")
