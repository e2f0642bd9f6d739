"""Events in the format of the WHATWG's specification of server-sent events.

It is a format of lines, UTF-8, in section 9.2 of https://html.spec.whatwg.org/. What a
parser makes of it decides what is written here:

- CRLF, CR and LF each end a line. So text with line ends becomes several lines, and
  where only one line is possible, in an event's type or id, there must be none.
- One space behind the colon is dropped. It is always written, so that a text may begin
  with one of its own.
- An empty line ends an event, which is dispatched if it has a line of data, be it an
  empty one. Without, its id and its retry count all the same.
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

#: A comment without text, which browsers pass over.
EMPTY_COMMENT: Final = b":\n\n"

_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    r"""One event of an `EventStream`, or a comment in it.

    Its data may be a str, which is sent as it is, or anything that Django's
    `JsonResponse` takes, which is sent as JSON. All line ends in a str arrive as
    ``"\n"``. An event without data tells the browser its id or its ``retry`` alone.

    Args:
        data: What the browser's listener gets. An empty str is data, too.
        event: The type of event to listen for, if not ``"message"``.
        id: What the browser says in ``Last-Event-ID`` when it connects again; see
            `last_event_id`. An empty one takes back those before it.
        retry: How many milliseconds the browser waits before it connects again.
        comment: A text that the browser passes over.

    Raises:
        TypeError: the data is bytes, or a value is of another type than these.
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
                "put base64 into a str."
            )
        self._check_type("event", str)
        self._check_type("id", str, int)
        self._check_type("retry", int)
        self._check_type("comment", str)
        self._check_one_line("event", "\r\n")
        self._check_one_line("id", "\r\n\0")
        if self.retry is not None and self.retry < 0:
            raise ValueError(
                f"An event's retry is 0 milliseconds or more, not {self.retry}."
            )
        if self.data is None:
            self._check_without_data()

    def _check_type(self, name: str, *types: type) -> None:
        value = getattr(self, name)
        # A bool is an int, but never meant as one here.
        is_right = isinstance(value, types) and not isinstance(value, bool)
        if value is not None and not is_right:
            allowed = " or ".join(kind.__name__ for kind in types)
            raise TypeError(f"An event's {name} is {allowed}, not {_shown(value)}.")

    def _check_one_line(self, name: str, forbidden: str) -> None:
        value = str(getattr(self, name))
        if any(character in value for character in forbidden):
            names = "neither CR nor LF" if name == "event" else "no CR, LF or NUL"
            raise ValueError(f"An event's {name} can have {names} in it: {value!r}.")

    def _check_without_data(self) -> None:
        if self.event is not None:
            raise ValueError(
                f"An event of type {self.event!r} has no data, so that no browser "
                "would dispatch it. Give it an empty str."
            )
        if (self.id, self.retry, self.comment) == (None, None, None):
            raise ValueError("An event needs data, an id, a retry or a comment.")

    def encode(self) -> bytes:
        """Return the lines that are sent, with the empty one that ends an event.

        Raises:
            TypeError: the data is nothing that JSON knows.
            UnicodeEncodeError: a text has a lone surrogate in it.
        """
        lines = [*self._lines(), "\n"]
        return "".join(lines).encode()

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
    """Return what is sent of an item of an event stream.

    Raises:
        TypeError: it is bytes, or None, or nothing that JSON knows.
        UnicodeEncodeError: a text has a lone surrogate in it.
    """
    if item is None:
        raise TypeError(
            "The item None of an EventStream is no event. Yield what is to be sent; if "
            "that is JSON's null, then the str 'null'."
        )
    event = item if isinstance(item, ServerSentEvent) else ServerSentEvent(item)
    return event.encode()


def last_event_id(request: HttpRequest) -> str:
    """Return the id of the last event that the browser has got, or an empty str.

    A browser that has lost an event stream connects again by itself, and says this in
    the header ``Last-Event-ID``. It is as the client sends it: nothing to trust.
    """
    value = request.headers.get("Last-Event-ID", "")
    try:
        # It is UTF-8, which Django has decoded as it does all headers.
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _text(data: Any) -> str:
    # A text that Django translates late is one, too.
    if isinstance(data, (str, Promise)):
        return str(data)
    return json.dumps(data, cls=DjangoJSONEncoder)


def _shown(value: object) -> str:
    return f"{type(value).__name__}: {value!r:.80}"
