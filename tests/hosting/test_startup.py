"""Servers that cannot start, and servers without lifespan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ._hosts import HOSTS
from ._server import serve

if TYPE_CHECKING:
    from pathlib import Path

    from ._server import Kind


@pytest.mark.demands("lifespan")
def test_a_failed_start_up_ends_the_server_with_its_reason(
    kind: Kind, tmp_path: Path
) -> None:
    """An error from lifespan() before its yield ends the server, and is logged.

    It also sets the exit status, but hypercorn 0.18 loses that by waiting twice.
    """
    with serve(
        kind, tmp_path, application="hosted.asgi:failing", expect_start=False
    ) as server:
        status = server.wait_for_end()
        assert status != 0 or kind.startswith("hypercorn")
        assert "ERROR trio_asgi: The application's startup failed" in server.log
        assert "LookupError: the kettle is missing" in server.log


def test_a_server_without_lifespan_is_served(kind: Kind, tmp_path: Path) -> None:
    """Requests, sync ones too, need no lifespan; and the process still ends well."""
    with serve(kind, tmp_path, application="hosted.asgi:without_lifespan") as server:
        if HOSTS[kind].on_trio:
            assert "without Lifespan support" in server.log
        assert server.get("/hello/?id=1") == b"hello 1"
        assert server.get("/sync/hello/?id=2") == b"hello 2"
        assert server.stop() in HOSTS[kind].ends_with
        assert "Traceback" not in server.log
        assert server.events("2") == ["started", "finished"]
