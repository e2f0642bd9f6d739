"""Where a rehearsal takes place, and what is noted of it; see `_rehearsal`."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._middleware import Chain


@dataclass(frozen=True)
class Step:
    """One piece of code that runs for a request."""

    name: str
    #: In which hop, counted from 1; None: on the loop.
    hop: int | None
    #: Why it needs the thread; None: it does not, and may be there all the same.
    why: str | None = None


@dataclass
class Course:
    """What a request comes to."""

    steps: list[Step] = field(default_factory=list)
    #: How many hops.
    hops: int = 0
    #: The sync middleware that each turn from the thread back to the loop comes from.
    turns: list[str] = field(default_factory=list)
    #: The view's name; None: the URL leads to none.
    view: str | None = None
    view_is_async: bool = False
    #: Which step is the view's; None: it is not reached.
    view_step: int | None = None
    status: int = 0
    #: What went otherwise than with a real request, in sentences.
    notes: list[str] = field(default_factory=list)


class Stage:
    """Where the code of a rehearsal runs, as far as it can tell, and what it does."""

    def __init__(
        self, act: Callable[[Stage, Any], Any], *, uses_database: bool
    ) -> None:
        """Be on the loop, at a request's beginning.

        Args:
            act: What the view does: it is given this, and the request.
            uses_database: Whether code in the thread uses one, whose connection is to
                be closed at the end.
        """
        self.act = act
        self.uses_database = uses_database
        self.course = Course()
        self.lease = StandInLease()
        #: Of stand-ins. Set before the request begins.
        self.chain: Chain
        #: What the project has raised last: the view, or the URLconf.
        self.error: Exception | None = None
        #: Sync middleware that waits for its get_response, the innermost last.
        self.waiting: list[str] = []
        #: In which hop the code runs, or None; below it, where it will run on later.
        self._places: list[int | None] = [None]

    def step(self, name: str, why: str | None = None) -> None:
        """Note a step, where the code runs just now."""
        self.course.steps.append(Step(name, self._places[-1], why))

    @contextmanager
    def hop(self) -> Iterator[None]:
        """Run the code within in the thread."""
        self.course.hops += 1
        with self._at(self.course.hops), self.lease.call():
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run the code within on the loop, while the thread waits."""
        self.course.turns.append(self.waiting[-1])
        with self._at(None):
            yield

    @contextmanager
    def _at(self, place: int | None) -> Iterator[None]:
        self._places.append(place)
        try:
            yield
        finally:
            self._places.pop()

    @contextmanager
    def project_errors(self) -> Iterator[None]:
        """Take what is raised within for the project's."""
        try:
            yield
        except Exception as error:
            self.error = error
            raise


class StandInLease:
    """Is a `Lease` as far as `RequestSignals` ask it; there is no thread."""

    abandoned = False
    borrowed = False
    retire = False
    unfinished = False

    def __init__(self) -> None:
        self.on_take: Callable[[], object] | None = None
        self.on_return: Callable[[], object] | None = None
        self.calls = 0
        #: Whether one would have been taken, and not given back.
        self.has_thread = False
        self._fresh = True

    @contextmanager
    def call(self) -> Iterator[None]:
        """Be the thread, while a call of this lease runs in it."""
        self.has_thread = True
        self.calls += 1
        if self._fresh:
            self._fresh = False
            if self.on_take is not None:
                self.on_take()
        try:
            yield
        finally:
            if self.on_return is not None:
                self.on_return()

    def release_idle_thread(self, *, on_take: Callable[[], object]) -> None:
        """Give the thread back."""
        self.on_take, self._fresh, self.has_thread = on_take, True, False
