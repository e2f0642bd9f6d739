"""The head of a response as an ASGI message, checked against RFC 9110.

Servers handle a head that they cannot send in different ways: hypercorn raises with
HTTP/1.1, and with HTTP/2 never sends anything. So the whole head is checked first, by
what a server may generate (sections 5.5, 5.6.2 and 15).
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from django.http.response import HttpResponseBase, ResponseHeaders

from trio_asgi.asgi.send import BODYLESS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_asgi.asgi.types import Message

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

#: The bytes that a value may have: a tab, and all but the control characters.
_IN_VALUES: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])

#: HTTP/2 forbids these (RFC 9113, section 8.2.2).
_OF_CONNECTIONS: Final = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
}


_ITEMS: Final = HttpResponseBase.items


def response_start(
    response: HttpResponseBase, *, size: int | None = None, is_http1: bool = True
) -> Message:
    """Return the first message of a response.

    ``size`` is the body's length in bytes, or None if it is unknown or there is no
    body. Without ``is_http1``, headers about the connection are left out.

    Raises:
        ValueError: the status or a header cannot be sent, or the Content-Length is not
            the body's.
    """
    status: Any = response.status_code
    if not (isinstance(status, int) and 200 <= status <= 999):  # noqa: PLR2004
        raise ValueError(
            f"A response with the status {status!r} cannot be sent: it must be a "
            "number from 200 to 999."
        )
    announced = response.headers.get("Content-Length")
    if (
        announced is not None
        and size is not None
        and status not in BODYLESS
        and not (announced.isdecimal() and int(announced) == size)
    ):
        raise ValueError(
            f"A response of {size} bytes cannot be sent with the Content-Length "
            f"{announced!r}. Do not set it: CommonMiddleware does."
        )
    headers = encode_headers(response)
    if not is_http1:
        headers = [pair for pair in headers if pair[0].lower() not in _OF_CONNECTIONS]
    return {"type": "http.response.start", "status": status, "headers": headers}


def encode_headers(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    """Return all headers, in their original case, and one for each cookie.

    Raises:
        ValueError: a header cannot be sent.
    """
    headers = [
        (_encode_name(name), value.encode("latin-1"))
        for name, value in _items(response)
    ]
    if response.cookies:
        headers.extend(
            (b"Set-Cookie", _encode_cookie(cookie.OutputString()))
            for cookie in response.cookies.values()
        )
    # All values at once: hardly any response has such a character.
    if b"".join([value for _, value in headers]).translate(None, _IN_VALUES):
        for name, value in headers:
            if found := value.translate(None, _IN_VALUES):
                raise ValueError(
                    f"The header {name.decode()!r} cannot be sent: its value has the "
                    f"control character {found[:1].decode('latin-1')!r}."
                )
    return headers


def _items(response: HttpResponseBase) -> Iterable[tuple[str, str]]:
    """Return the headers' names and values, without looking each of them up again."""
    headers = response.headers
    if type(headers) is ResponseHeaders and type(response).items is _ITEMS:
        return headers._store.values()
    return response.items()


@functools.lru_cache(maxsize=1024)  # projects have few
def _encode_name(name: str) -> bytes:
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(
            f"A header with the name {name!r} cannot be sent: a name may have letters, "
            "digits, '-' and some other ASCII characters."
        )
    return name.encode("ascii")


def _encode_cookie(cookie: str) -> bytes:
    try:
        return cookie.encode("ascii")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The cookie {cookie!r} cannot be sent: it must be ASCII. Encode its value "
            "first, for example with urllib.parse.quote()."
        ) from error
