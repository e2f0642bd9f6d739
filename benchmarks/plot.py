"""The main ratios as a picture: ``plot.py results.json picture.svg [PART ...]``.

The main ratios are the first of each comparison, and those that have a target; of
comparisons with one request at a time and with many, only the latter.

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

#: How wide the bars' part is, and what stands left and right of it.
BARS, MARGIN, FIGURES = 370, 24, 60
#: At most how wide a letter is, as a mean over a label, in each size.
LETTER, BOLD_LETTER = 6.8, 8.0
INDENT = 16
ROW, GAP, TOP = 20, 10, 88
TIMES = "\N{MULTIPLICATION SIGN}"
#: The parts that have ratios, and their headings.
PARTS = {
    "in-process": "Throughput in process, over Django's ASGIHandler",
    "http": "Throughput over HTTP, trio_asgi under its best server",
    "blocking": "Views that sleep: time of the first wave; throughput",
}
#: What the classes of `STYLE` mean. Each starts where the one before it ends.
LEGEND = {
    "better": "trio_asgi is better",
    "worse": "trio_asgi is worse",
    "spread": "quartiles of the rounds",
    "target": "goal of the project",
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
    """Yield the main ratios of these parts."""
    for part in parts:
        heading = PARTS[part]
        for line in results["parts"].get(part, ()):
            if not line.get("better") or not _is_main(line):
                continue
            less = line["better"] == "less"
            yield Bar(
                label=line["title"] + (" (less is better)" if less else ""),
                heading=heading,
                is_better=(line["median"] >= 1) != less,
                median=line["median"],
                quartiles=tuple(line["quartiles"]),
                target=line["target"] and line["target"]["value"],
            )
            heading = ""


def _is_main(line: dict[str, Any]) -> bool:
    title = line["title"]
    if title.endswith("1 at a time"):
        return False
    return bool(line["target"]) or not title.startswith(" ")


def draw(results: dict[str, Any], parts: Collection[str] = tuple(PARTS)) -> str:
    """Return the picture."""
    shown = list(bars(results, parts))
    left = MARGIN + max(
        *(len(bar.label) * LETTER + INDENT for bar in shown),
        *(len(bar.heading) * BOLD_LETTER for bar in shown),
    )
    values = [1.0, *(value for bar in shown for value in (bar.median, *bar.quartiles))]
    values += [bar.target for bar in shown if bar.target]
    ticks = _ticks(min(values), max(values))
    low, high = math.log(ticks[0]), math.log(ticks[-1])

    def x(value: float) -> float:
        part = (math.log(value) - low) / (high - low)
        return round(left + BARS * part, 1)

    rows = len(shown) + sum(bool(bar.heading) for bar in shown)
    gaps = sum(bool(bar.heading) for bar in shown)
    height = TOP + rows * ROW + gaps * GAP + 12
    drawn = [_text("title", 8, 20, _title(results)), *_legend()]
    for tick in ticks:
        drawn += [
            _line("one" if tick == 1 else "grid", x(tick), x(tick), TOP, height - 8),
            _text("axis", x(tick), TOP - 4, f"{tick:g}{TIMES}"),
        ]
    y = float(TOP)
    for bar in shown:
        if bar.heading:
            y += GAP
            drawn.append(_text("title", 8, y + ROW / 2 + 4, bar.heading))
            y += ROW
        drawn += _bar(bar, y, x, left + BARS + 10)
        y += ROW
    body = "\n".join(drawn)
    width = round(left + BARS + FIGURES)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">\n'
        f"<title>{escape(_title(results))}</title>\n"
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _legend() -> Iterator[str]:
    x, y = 8.0, 44
    for style, meaning in LEGEND.items():
        if style in {"better", "worse"}:
            yield f'<rect class="{style}" x="{x}" y="{y - 11}" width="20" height="14"/>'
        elif style == "spread":
            yield _line(style, x, x + 20, y - 4, y - 4)
        else:
            yield _line(style, x + 10, x + 10, y - 13, y + 5)
        yield _text("", x + 28, y, meaning)
        x += 28 + len(meaning) * LETTER + MARGIN


def _begins_group(bar: Bar) -> bool:
    return not bar.label.startswith(" ")


def _bar(
    bar: Bar, y: float, x: Callable[[float], float], right: float
) -> Iterator[str]:
    centre = y + ROW / 2
    low, high = bar.quartiles
    start, end = sorted((x(1), x(bar.median)))
    indent = 0 if _begins_group(bar) else INDENT
    yield _text("", 8 + indent, centre + 4, bar.label.strip())
    yield (
        f'<rect class="{"better" if bar.is_better else "worse"}" x="{start}"'
        f' y="{y + 3}" width="{end - start:.1f}" height="{ROW - 6}" rx="2"/>'
    )
    yield _line("spread", x(low), x(high), centre, centre)
    if bar.target:
        yield _line("target", x(bar.target), x(bar.target), y + 1, y + ROW - 1)
    yield _text("figure", right, centre + 4, middle([bar.median]) + TIMES)


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
    return "trio_asgi over others: " + ", ".join(f"{n} {versions[n]}" for n in names)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_text(draw(json.loads(source.read_text()), sys.argv[3:] or PARTS))
