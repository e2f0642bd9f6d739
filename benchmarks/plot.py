"""A picture of the ratios, in SVG: ``plot.py results.json picture.svg [PART ...]``.

One bar for each ratio, whiskers for the quartiles, a mark for the target. A bar starts
at 1, on a logarithmic axis, so that a loss is as long as a gain of the same factor. The
colour says which it is: more requests are a gain, and so is less time. The colours are
readable on white and on black, since the page around the picture may be either.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from report import middle

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

WIDTH = 860
#: Where bars may begin and end.
LEFT, RIGHT = 430, 800
ROW, GAP, TOP = 20, 10, 60
SUBJECT = (
    "trio_asgi over others. Blue: trio_asgi is better; red: worse; orange: the target"
)
TIMES = "\N{MULTIPLICATION SIGN}"
#: The parts that have ratios, and their headings.
PARTS = {
    "in-process": "In-process: throughput / that of Django's ASGIHandler on asyncio",
    "http": "Over HTTP: throughput of trio_asgi under its best server / that of",
    "blocking": "Views that sleep: time of a wave, throughput of the others",
}
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #7a7f87 }
.title { font-weight: 600; font-size: 14px }
.axis { text-anchor: middle }
.figure { font-weight: 600 }
.grid { stroke: #7a7f87; stroke-opacity: .3 }
.one { stroke: #7a7f87; stroke-dasharray: 4 3 }
.better { fill: #3d8fc4 }
.worse { fill: #c4473d }
.spread { stroke: #7a7f87; stroke-width: 2 }
.target { stroke: #d9702c; stroke-width: 3 }
"""


@dataclass(frozen=True)
class Bar:
    """One ratio."""

    label: str
    #: The heading of the bars that it begins, if any.
    heading: str
    is_better: bool
    median: float
    quartiles: tuple[float, float]
    target: float | None


def bars(results: dict[str, Any], parts: Collection[str]) -> Iterator[Bar]:
    """Yield the ratios of these parts."""
    for part in parts:
        heading = PARTS[part]
        for line in results["parts"].get(part, ()):
            if not line.get("better"):
                continue
            yield Bar(
                label=line["title"],
                heading=heading,
                is_better=(line["median"] >= 1) == (line["better"] == "more"),
                median=line["median"],
                quartiles=tuple(line["quartiles"]),
                target=line["target"] and line["target"]["value"],
            )
            heading = ""


def draw(results: dict[str, Any], parts: Collection[str] = tuple(PARTS)) -> str:
    """Return the picture."""
    shown = list(bars(results, parts))
    values = [1.0, *(value for bar in shown for value in (bar.median, *bar.quartiles))]
    values += [bar.target for bar in shown if bar.target]
    ticks = _ticks(min(values), max(values))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def x(value: float) -> float:
        part = (math.log(value) - low) / (high - low)
        return round(LEFT + (RIGHT - LEFT) * part, 1)

    rows = len(shown) + sum(bool(bar.heading) for bar in shown)
    gaps = sum(_begins_group(bar) for bar in shown)
    height = TOP + rows * ROW + gaps * GAP + 12
    drawn = [_text("title", 8, 20, _title(results)), _text("", 8, 38, SUBJECT)]
    for tick in ticks:
        drawn += [
            _line("one" if tick == 1 else "grid", x(tick), x(tick), TOP, height - 8),
            _text("axis", x(tick), TOP - 4, f"{tick:g}{TIMES}"),
        ]
    y = float(TOP)
    for bar in shown:
        y += GAP if _begins_group(bar) else 0
        if bar.heading:
            drawn.append(_text("title", 8, y + ROW / 2 + 4, bar.heading))
            y += ROW
        drawn += _bar(bar, y, x)
        y += ROW
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{escape(_title(results))}</title>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _begins_group(bar: Bar) -> bool:
    return not bar.label.startswith(" ")


def _bar(bar: Bar, y: float, x: Callable[[float], float]) -> Iterator[str]:
    centre = y + ROW / 2
    low, high = bar.quartiles
    start, end = sorted((x(1), x(bar.median)))
    yield _text("", 8 if _begins_group(bar) else 24, centre + 4, bar.label.strip())
    yield (
        f'<rect class="{"better" if bar.is_better else "worse"}" x="{start}"'
        f' y="{y + 3}" width="{end - start:.1f}" height="{ROW - 6}" rx="2"/>'
    )
    yield _line("spread", x(low), x(high), centre, centre)
    if bar.target:
        yield _line("target", x(bar.target), x(bar.target), y + 1, y + ROW - 1)
    yield _text("figure", RIGHT + 10, centre + 4, middle([bar.median]) + TIMES)


def _text(style: str, x: float, y: float, text: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most ``low``, and at most 1/2, to at least both."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    first = max(step for step in steps if step <= min(low, 0.5))
    last = min(step for step in steps if step >= max(high, 2))
    return [step for step in steps if first <= step <= last]


def _title(results: dict[str, Any]) -> str:
    versions = results["versions"]
    names = ("trio_asgi", "Python", "Django")
    return ", ".join(f"{name} {versions[name]}" for name in names)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text()), sys.argv[3:] or PARTS))
