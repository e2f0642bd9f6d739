"""Scopes of unknown types."""

from __future__ import annotations

import pytest

from support import application, http_scope
from trio_asgi.testing import ApplicationCommunicator


async def test_an_unknown_scope_is_an_error() -> None:
    """A type that ASGI does not know raises Django's ValueError."""
    communicator = ApplicationCommunicator(application(), http_scope(type="other"))
    expected = "Django can only handle ASGI/HTTP connections, not other."
    with pytest.raises(ValueError, match=expected):
        await communicator.receive_output()
