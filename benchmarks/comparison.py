"""Results of servers in lines: trio_asgi under its best server, over each other."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from report import SERVED, Line, Note, middle
from servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from report import Target


@dataclass(frozen=True)
class Figure:
    """One figure of a result."""

    name: str
    title: str
    unit: str
    #: None: it is not compared, only shown.
    better: Literal["more", "less"] | None = None


def best(found: Mapping[str, Sequence[Mapping[str, float]]], figure: Figure) -> str:
    """Return the server under which trio_asgi has the best median of a figure."""
    medians = {
        name: statistics.median(result[figure.name] for result in rounds)
        for name, rounds in found.items()
        if SERVERS[name].is_ours
    }
    choose = max if figure.better == "more" else min
    return choose(medians, key=medians.__getitem__)


def compare(
    title: str,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    figures: Sequence[Figure],
    *,
    facts: Mapping[str, Any],
    targets: Mapping[str, Target] | None = None,
) -> Iterator[Line | Note]:
    """Yield the ratios of each round, then the medians of each server.

    Args:
        title: of the work, and of the first figure unless the section names it
        found: for each server, the figures of each round
        figures: the first decides which of trio_asgi's servers is the best
        facts: about the work
        targets: for the first figure, over that of a server
    """
    ours = best(found, figures[0])
    facts = {**facts, "server of trio_asgi": ours}
    for other in found:
        if SERVERS[other].is_ours:
            continue
        for figure in figures:
            if figure.better is None:
                continue
            first = figure is figures[0]
            over = f"{title} / {SERVERS[other].title}"
            target = targets.get(other) if first and targets else None
            yield Line(
                over if first else f"    {figure.title}",
                [
                    us[figure.name] / them[figure.name]
                    for us, them in zip(found[ours], found[other], strict=True)
                ],
                target=target,
                better=figure.better,
                row=target and (SERVED, f"{over} ({SERVERS[ours].title})"),
                facts={**facts, "against": other, "figure": figure.name},
            )
    for name, rounds in found.items():
        medians = ", ".join(
            middle([result[figure.name] for result in rounds]) + figure.unit
            for figure in figures
        )
        yield Note(
            f"    {SERVERS[name].title}: {medians}",
            facts={**facts, "server": name, "rounds": rounds},
        )
