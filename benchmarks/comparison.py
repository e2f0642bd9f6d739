"""Results of servers in lines: the first server over each of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from report import Line, Note, middle
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


def compare(
    title: str,
    found: Mapping[str, Sequence[Mapping[str, float]]],
    figures: Sequence[Figure],
    *,
    facts: Mapping[str, Any],
    target: Target | None = None,
) -> Iterator[Line | Note]:
    """Yield the ratios of each round, then the medians of each server.

    Args:
        title: of the work, and of the first figure unless the section names it
        found: for each server, the figures of each round
        figures: the first is compared
        facts: about the work
        target: for the first figure over uvicorn's
    """
    ours, *others = found
    for other in others:
        for figure in figures:
            if figure.better is None:
                continue
            first = figure is figures[0]
            over = f"{title} / {SERVERS[other].title}"
            yield Line(
                over if first else f"    {figure.title}",
                [
                    us[figure.name] / them[figure.name]
                    for us, them in zip(found[ours], found[other], strict=True)
                ],
                target=target if first and other == "uvicorn" else None,
                better=figure.better,
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
