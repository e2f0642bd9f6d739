"""Server-sent events, in the format of https://html.spec.whatwg.org/, section 9.2.

The format has lines of UTF-8. A browser's parser decides what is written here:

- CRLF, CR and LF each end a line. So text with line ends becomes several lines. An
  event's type or id has only one line, and must have no line ends.
- The parser drops one space after the colon. It is always written, so that a text may
  begin with a space.
- An empty line ends an event. It is dispatched if it has a line of data, even an empty
  one. Its id and its retry count in any case.
- An id with NUL in it is ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Final

from django.core.serializers.json import DjangoJSONEncoder
from django.utils.functional import Promise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.http import HttpRequest

#: A comment without text, which browsers ignore.
EMPTY_COMMENT: Final = b":\n\n"

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    r"""One event of an `EventStream`, or a comment in it.

    A str is sent unchanged as the data, but each line end in it arrives as ``"\n"``.
    Anything else that Django's `JsonResponse` takes is sent as JSON. An event without
    data tells the browser only its id or ``retry``.

    Args:
        data: What the browser's listener gets. An empty str is data, too.
        event: The type of event to listen for, if not ``"message"``.
        id: What the browser sends as ``Last-Event-ID`` when it reconnects; see
            `last_event_id`. An empty one makes the browser forget earlier ones.
        retry: How many milliseconds the browser waits before it reconnects.
        comment: A text that the browser ignores.

    Raises:
        TypeError: the data is bytes, or another value has the wrong type.
        ValueError: a value cannot be written in this format, or there is none.
    """

    data: Any = None
    _: KW_ONLY
    event: str | None = None
    id: str | int | None = None
    retry: int | None = None
    comment: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"The data of an event is text, not {_shown(self.data)}: decode it, or "
                "encode it as base64 in a str."
            )
        self._check_type("event", str)
        self._check_type("id", str, int)
        self._check_type("retry", int)
        self._check_type("comment", str)
        self._check_one_line("event", "\r\n")
        self._check_one_line("id", "\r\n\0")
        if self.retry is not None and self.retry < 0:
            raise ValueError(
                f"An event's retry must be 0 milliseconds or more, not {self.retry}."
            )
        if self.data is None:
            self._check_without_data()

    def _check_type(self, name: str, *types: type) -> None:
        value = getattr(self, name)
        # A bool is an int, but surely a mistake here.
        is_right = isinstance(value, types) and not isinstance(value, bool)
        if value is not None and not is_right:
            allowed = " or ".join(kind.__name__ for kind in types)
            raise TypeError(
                f"An event's {name} must be {allowed}, not {_shown(value)}."
            )

    def _check_one_line(self, name: str, forbidden: str) -> None:
        value = str(getattr(self, name))
        if any(character in value for character in forbidden):
            names = "CR or LF" if name == "event" else "CR, LF or NUL"
            raise ValueError(f"An event's {name} cannot contain {names}: {value!r}.")

    def _check_without_data(self) -> None:
        if self.event is not None:
            raise ValueError(
                f"An event of type {self.event!r} has no data, so no browser would "
                "dispatch it. Give it an empty str."
            )
        if (self.id, self.retry, self.comment) == (None, None, None):
            raise ValueError("An event needs data, an id, a retry or a comment.")

    def encode(self) -> bytes:
        """Return the event's lines, with the empty line that ends it.

        Raises:
            TypeError: the data cannot be JSON.
            UnicodeEncodeError: a text contains a lone surrogate.
        """
        return "".join([*self._lines(), "\n"]).encode()

    def _lines(self) -> Iterator[str]:
        if self.comment is not None:
            yield from (f": {line}\n" for line in _LINE_END.split(self.comment))
        for name in ("event", "id", "retry"):
            value = getattr(self, name)
            if value is not None:
                yield f"{name}: {value}\n"
        if self.data is not None:
            yield from (f"data: {line}\n" for line in _LINE_END.split(_text(self.data)))


def encode_item(item: object) -> bytes:
    """Return the bytes to send for an item of an event stream.

    Raises:
        TypeError: it is bytes, or None, or cannot be JSON.
        UnicodeEncodeError: a text contains a lone surrogate.
    """
    if item is None:
        raise TypeError(
            "The item None of an EventStream is not an event. To send JSON's null, "
            "yield the str 'null'."
        )
    event = item if isinstance(item, ServerSentEvent) else ServerSentEvent(item)
    return event.encode()


def last_event_id(request: HttpRequest) -> str:
    """Return the id of the last event that the browser received, or an empty str.

    A browser that has lost an event stream reconnects, with this id in the header
    ``Last-Event-ID``. Do not trust it: a client can send anything.
    """
    value = request.headers.get("Last-Event-ID", "")
    try:
        # It is UTF-8; Django decodes headers as Latin-1.
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _text(data: Any) -> str:
    # A Promise is a text that Django translates late.
    if isinstance(data, (str, Promise)):
        return str(data)
    return json.dumps(data, cls=DjangoJSONEncoder)


def _shown(value: object) -> str:
    return f"{type(value).__name__}: {value!r:.80}"
