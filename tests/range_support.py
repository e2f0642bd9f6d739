"""Read the parts of a ``multipart/byteranges``, by code that is not ours."""

from __future__ import annotations

from email import message_from_bytes
from typing import Any, cast


def parts_of(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Return Content-Range and content of each part, as the email package reads it.

    Args:
        content_type: The response's, with the boundary.
        body: The response's, whole.
    """
    message = message_from_bytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body
    )
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    return [
        (str(part["Content-Range"]), cast("bytes", part.get_payload(decode=True)))
        for part in cast("list[Any]", message.get_payload())
    ]
