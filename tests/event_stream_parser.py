"""A parser of event streams that does what the WHATWG specification asks of browsers.

Section 9.2.6 of https://html.spec.whatwg.org/, step by step, with its names.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Dispatched:
    """An event as a listener gets it."""

    data: str
    type: str = "message"
    last_event_id: str = ""


@dataclass
class EventStreamParser:
    """Takes a stream in pieces; anything after its last empty line is dropped."""

    #: The events that were dispatched.
    events: list[Dispatched] = field(default_factory=list)
    #: The id that the browser sends when it reconnects.
    last_event_id: str = ""
    #: The reconnection time in milliseconds, if the stream has set it.
    reconnection_time: int | None = None
    #: The comments, which a browser ignores.
    comments: list[str] = field(default_factory=list)

    _undecoded: bytes = b""
    _data_buffer: str = ""
    _event_type_buffer: str = ""
    _last_event_id_buffer: str = ""

    def feed(self, piece: bytes) -> None:
        """Take the next piece; keep an incomplete line until the rest comes."""
        *lines, self._undecoded = _split_lines(self._undecoded + piece)
        for line in lines:
            self._process(line.decode("utf-8", errors="replace"))

    def _process(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif line.startswith(":"):
            self.comments.append(line[1:])
        elif ":" in line:
            name, _, value = line.partition(":")
            self._process_field(name, value.removeprefix(" "))
        else:
            self._process_field(line, "")

    def _process_field(self, name: str, value: str) -> None:
        if name == "event":
            self._event_type_buffer = value
        elif name == "data":
            self._data_buffer += value + "\n"
        elif name == "id":
            if "\0" not in value:
                self._last_event_id_buffer = value
        elif name == "retry" and value and set(value) <= set("0123456789"):
            self.reconnection_time = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._last_event_id_buffer
        data, self._data_buffer = self._data_buffer, ""
        event_type, self._event_type_buffer = self._event_type_buffer, ""
        if data != "":
            data = data.removesuffix("\n")
            self.events.append(
                Dispatched(data, event_type or "message", self.last_event_id)
            )


def parse(stream: bytes) -> EventStreamParser:
    """Return what a browser makes of a whole stream. A byte order mark is ignored."""
    parser = EventStreamParser()
    parser.feed(stream.removeprefix(b"\xef\xbb\xbf"))
    return parser


def _split_lines(stream: bytes) -> list[bytes]:
    # Unlike str.splitlines(), which knows more line ends. None of these bytes is
    # part of a longer character in UTF-8.
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
