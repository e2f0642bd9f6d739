"""A picture of the ratios, in SVG: ``python plot.py results.json picture.svg``.

One bar for each ratio, whiskers for the quartiles, a mark for the target. The colours
are readable on white and on black, since the page around the picture may be either.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 760
#: Where bars begin and end.
LEFT, RIGHT = 330, 700
ROW, GAP, TOP = 20, 10, 60
SUBJECT = "requests a second, as multiples of Django's on asyncio"
TIMES = "\N{MULTIPLICATION SIGN}"
#: About so many steps on the axis.
STEPS = 6

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #7a7f87 }
.title { font-weight: 600; font-size: 14px }
.axis { text-anchor: middle }
.figure { font-weight: 600 }
.grid { stroke: #7a7f87; stroke-opacity: .3 }
.one { stroke: #7a7f87; stroke-dasharray: 4 3 }
.bar { fill: #3d8fc4 }
.alone { fill: #6fb5a0 }
.spread { stroke: #7a7f87; stroke-width: 2 }
.target { stroke: #d9702c; stroke-width: 3 }
"""


@dataclass(frozen=True)
class Bar:
    """One ratio."""

    label: str
    #: Whether it begins a group of bars.
    first: bool
    style: str
    median: float
    quartiles: tuple[float, float]
    target: float | None


def bars(results: dict[str, Any]) -> Iterator[Bar]:
    """Yield the measured ratios of throughput."""
    before = None
    for part in ("in-process", "http"):
        for line in results["parts"].get(part, ()):
            facts = line["facts"]
            if facts.get("against") not in ("asyncio", "uvicorn"):
                continue
            group = facts.get("work", part)
            alone = facts.get("concurrency") == 1
            over_http = "over HTTP, " if part == "http" else ""
            yield Bar(
                label=over_http + line["title"],
                first=group != before,
                style="alone" if alone else "bar",
                median=line["median"],
                quartiles=tuple(line["quartiles"]),
                target=line["target"] and line["target"]["value"],
            )
            before = group


def draw(results: dict[str, Any]) -> str:
    """Return the picture."""
    shown = list(bars(results))
    values = [1.0, *(max(bar.quartiles) for bar in shown)]
    values += [bar.target for bar in shown if bar.target]
    step = _step(max(values) / STEPS)
    end = step * math.ceil(max(values) / step)

    def x(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * value / end, 1)

    height = TOP + len(shown) * ROW + sum(bar.first for bar in shown) * GAP + 12
    parts = [
        _text("title", 8, 20, _title(results)),
        _text("", 8, 38, f"{SUBJECT}; orange: the target"),
    ]
    for number in range(round(end / step) + 1):
        at = x(number * step)
        parts += [
            _line("grid", at, at, TOP, height - 8),
            _text("axis", at, TOP - 4, f"{number * step:g}{TIMES}"),
        ]
    parts.append(_line("one", x(1), x(1), TOP, height - 8))
    y = float(TOP)
    for bar in shown:
        y += GAP if bar.first else 0
        parts += _bar(bar, y, x)
        y += ROW
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{escape(_title(results))}</title>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _bar(bar: Bar, y: float, x: Any) -> Iterator[str]:
    middle = y + ROW / 2
    low, high = bar.quartiles
    yield _text("", 8, middle + 4, bar.label)
    yield (
        f'<rect class="{bar.style}" x="{LEFT}" y="{y + 3}"'
        f' width="{x(bar.median) - LEFT:.1f}" height="{ROW - 6}" rx="2"/>'
    )
    yield _line("spread", x(low), x(high), middle, middle)
    if bar.target:
        yield _line("target", x(bar.target), x(bar.target), y + 1, y + ROW - 1)
    yield _text("figure", RIGHT + 10, middle + 4, f"{bar.median:.1f}{TIMES}")


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def _step(least: float) -> float:
    """Return the next round number that is not smaller."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least)


def _title(results: dict[str, Any]) -> str:
    versions = results["versions"]
    names = ("trio_asgi", "Python", "Django")
    return ", ".join(f"{name} {versions[name]}" for name in names)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(json.loads(source.read_text())))
