"""Plots as SVG, written by hand: bars with a label, a value, and lines to compare them with.

A plotting library would be the largest dependency of the project for three pictures of bars. Same numbers, same bytes, so that
a changed plot is a changed result. Text is dark grey on white in light and dark pages alike.
"""

from collections.abc import Sequence
from html import escape

import msgspec

COLOURS = ("#3b6ea5", "#d98032", "#5a9e6f", "#a05195", "#8a8a8a", "#c0504d", "#7b6d5a", "#4aa3a2")
WIDTH, LABEL, VALUE = 860, 230, 90
BAR, GAP, GROUP_GAP = 13, 2, 9
TOP, BOTTOM = 58, 34
STYLE = 'font-family="sans-serif" font-size="11" fill="#333" role="img"'


class Bar(msgspec.Struct, frozen=True):
    """One bar of a group: parts are put end to end; ``text`` stands behind it."""

    parts: tuple[float, ...]
    text: str
    colours: tuple[int, ...] = (0,)


class Group(msgspec.Struct, frozen=True):
    """Bars that belong together."""

    label: str
    bars: tuple[Bar, ...]


class Line(msgspec.Struct, frozen=True):
    """A value to compare with."""

    at: float
    text: str


def draw_bars(title: str, legend: Sequence[str], groups: Sequence[Group], lines: Sequence[Line] = ()) -> str:
    """Return an SVG document of horizontal bars, the legend's entries in the order of the colours."""
    largest = max(
        [sum(bar.parts) for group in groups for bar in group.bars] + [line.at for line in lines] + [1e-9]
    )
    scale = (WIDTH - LABEL - VALUE) / largest
    height = TOP + BOTTOM + sum(len(group.bars) * (BAR + GAP) + GROUP_GAP for group in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {STYLE} aria-label="{escape(title)}">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="10" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    parts += _draw_legend(legend)
    y = float(TOP)
    for group in groups:
        middle = y + len(group.bars) * (BAR + GAP) / 2 + 3
        parts.append(f'<text x="{LABEL - 8}" y="{middle:.1f}" text-anchor="end">{escape(group.label)}</text>')
        for bar in group.bars:
            parts += _draw_bar(bar, y, scale)
            y += BAR + GAP
        y += GROUP_GAP
    for line in lines:
        x = LABEL + line.at * scale
        parts += [
            f'<path d="M{x:.1f} {TOP - 4}V{height - BOTTOM + 2}" stroke="#333" stroke-dasharray="4 3"/>',
            f'<text x="{x:.1f}" y="{height - BOTTOM + 15}" text-anchor="middle">{escape(line.text)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_legend(legend: Sequence[str]) -> list[str]:
    parts, x = [], 10.0
    for number, text in enumerate(legend):
        colour = COLOURS[number % len(COLOURS)]
        parts += [
            f'<rect x="{x:.0f}" y="31" width="11" height="11" fill="{colour}"/>',
            f'<text x="{x + 15:.0f}" y="40">{escape(text)}</text>',
        ]
        x += 30 + 6.2 * len(text)
    return parts


def _draw_bar(bar: Bar, y: float, scale: float) -> list[str]:
    parts, x = [], float(LABEL)
    for part, colour in zip(bar.parts, bar.colours, strict=True):
        width = max(part * scale, 0.5)
        fill = COLOURS[colour % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{fill}"/>')
        x += width
    parts.append(f'<text x="{x + 5:.1f}" y="{y + BAR - 3:.1f}">{escape(bar.text)}</text>')
    return parts
