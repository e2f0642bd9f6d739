"""Figures and their output: medians with quartiles, beside their targets."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: The tables of `tables`: what is measured, and the figure.
FLOOR = "In process, 32 at a time: CPU time over that of WSGI's handler"
BASELINE = "In process, 32 at a time: throughput over that of Django's ASGI handler"
SERVED = "One process, startproject's middleware"
GUEST = "Under uvicorn with uvloop, startproject's middleware"

#: From these values on, figures are shown with one decimal, and with none.
ONE_DECIMAL, NO_DECIMAL = 10, 100


@dataclass(frozen=True)
class Target:
    """A goal; a measurement that misses it is not a failure."""

    sense: Literal["at least", "at most"]
    value: float

    def is_reached(self, value: float) -> bool:
        """Return whether a figure is good enough."""
        if self.sense == "at least":
            return value >= self.value
        return value <= self.value

    def __str__(self) -> str:
        return f"{self.sense} {self.value:g}"


def at_least(value: float) -> Target:
    """Return a target for a figure that should be large."""
    return Target("at least", value)


def at_most(value: float) -> Target:
    """Return a target for a figure that should be small."""
    return Target("at most", value)


@dataclass
class Line:
    """A figure of each round, and the target for their median."""

    title: str
    values: Sequence[float]
    unit: str = "x"
    target: Target | None = None
    #: For a ratio in the plot: whether trio_asgi wins if it is above or below 1.
    better: Literal["more", "less"] | None = None
    #: The heading of the table that it is a row of, and the row's.
    row: tuple[str, str] | None = None
    #: Data for the plot and other programs.
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The bounds of the middle half of the rounds."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> str:
        """The quartiles as text."""
        return " to ".join(map(_show, self.quartiles))

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached; None if there is none."""
        return None if self.target is None else self.target.is_reached(self.median)

    @property
    def verdict(self) -> str:
        """Whether the target is reached, in a word."""
        return "reached" if self.is_reached else "missed"

    def show(self, *, judge: bool) -> str:
        """Return it as text; if ``judge``, say whether the target is reached."""
        figure = _show(self.median) + self.unit
        spread = f"({self.spread})" if len(self.values) > 1 else ""
        target = verdict = ""
        if self.target is not None:
            target = str(self.target)
            verdict = self.verdict
        text = f"{self.title:56} {figure:>9} {spread:18} {target:12}"
        return f"{text} {verdict if judge else ''}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return everything, including the computed figures."""
        low, high = self.quartiles
        computed = {
            "median": self.median,
            "quartiles": [low, high],
            "reached": self.is_reached,
        }
        return asdict(self) | computed


@dataclass
class Note:
    """A line of text about the lines before it."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)

    def show(self, *, judge: bool) -> str:  # noqa: ARG002 - as a line's
        """Return the text."""
        return self.text

    def as_json(self) -> dict[str, Any]:
        """Return everything."""
        return asdict(self)


def tables(lines: Iterable[Line | Note], *, judge: bool) -> str:
    """Return the lines that are rows of tables, as tables in Markdown."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if isinstance(line, Line) and line.row is not None:
            heading, title = line.row
            figure = middle(line.values) + line.unit
            verdict = line.verdict if judge else ""
            cells = title, figure, line.spread, str(line.target), verdict
            found.setdefault(heading, []).append(f"| {' | '.join(cells)} |")
    return "\n".join(
        f"\n| {heading} | median | quartiles | target | |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        for heading, rows in found.items()
    )


def middle(values: Sequence[float]) -> str:
    """Return the median, for a note."""
    return _show(statistics.median(values))


def _show(value: float) -> str:
    """Return a figure with the digits that are significant; a count is exact."""
    if isinstance(value, int) or abs(value) >= NO_DECIMAL:
        return f"{value:,.0f}"
    if abs(value) >= ONE_DECIMAL:
        return f"{value:.1f}"
    return f"{value:.2f}"
