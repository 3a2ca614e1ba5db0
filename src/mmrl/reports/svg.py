"""A small builder of charts as SVG that lives in a page: text stays text, colours follow the page's style sheet (light, dark, print).

Series differ in colour (class s0, s1, ... of the page), marker and dash. Lengths are CSS pixels.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SMALL = 11.5  # px, all text
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "bar")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "4 2 1 2")


def width_of(text: str) -> float:
    """In px; rather too much than too little: in ems of the widest sans-serif font that browsers fall back to."""
    return SMALL * sum(0.36 if c in "iljtfI.,:;'|!()[] " else 0.92 if c in "mwMW@%" else 0.74 if c.isupper() else 0.63 for c in text)


def fitted(text: str, room: float) -> str:
    """`text`, cut with an ellipsis to what fits into `room` px."""
    if width_of(text) <= room:
        return text
    kept = text
    while len(kept) > 1 and width_of(kept + "…") > room:
        kept = kept[:-1]
    return kept + "…"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    span = high - low if high > low else 1.0
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of [low, high] to [start, end]."""
    span = high - low if high != low else 1.0
    return lambda value: start + (value - low) / span * (end - start)


def tag(name: str, content: str = "", **attributes: object) -> str:
    """One element. `content` is markup; attributes are escaped; `_` in their names is `-`, numbers keep a tenth of a pixel."""
    words = []
    for key, value in attributes.items():
        if value is None or value == "":
            continue
        shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
        words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(shown)}"')
    head = " ".join([name, *words])
    return f"<{head}>{content}</{name}>" if content else f"<{head}/>"


def marker(kind: str, x: float, y: float, size: float = 4.2) -> str:
    """A filled mark, in the current colour."""
    if kind == "circle":
        return tag("circle", cx=x, cy=y, r=size, class_="mark")
    s = size
    shapes = {
        "square": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "triangle": ((0, -1.2 * s), (1.15 * s, 0.9 * s), (-1.15 * s, 0.9 * s)),
        "diamond": ((0, -1.35 * s), (1.35 * s, 0), (0, 1.35 * s), (-1.35 * s, 0)),
        "bar": ((-0.3 * s, -1.7 * s), (0.3 * s, -1.7 * s), (0.3 * s, 1.7 * s), (-0.3 * s, 1.7 * s)),
    }
    if kind in shapes:
        return tag("polygon", points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind]), class_="mark")
    return tag("path", d=f"M{x - s:.1f} {y - s:.1f}l{2 * s:.1f} {2 * s:.1f}m0 {-2 * s:.1f}l{-2 * s:.1f} {2 * s:.1f}", class_="stroke thick")


def look(series: int) -> tuple[str, str, str]:
    """Class (colour), marker and dash of a series; all 36 pairs of colour and marker are used before one comes again."""
    n = len(MARKERS)
    other = (series + series // n) % n
    return f"s{series % n}", MARKERS[other], DASHES[other]


def swatch(series: int) -> str:
    """The line and mark of a series, for a legend."""
    colour, mark, dash = look(series)
    line = tag("line", x1=1, y1=7, x2=27, y2=7, class_="stroke", stroke_dasharray=dash)
    inside = tag("g", line + marker(mark, 14, 7, 3.6), class_=colour)
    return tag("svg", inside, width=28, height=14, viewBox="0 0 28 14", aria_hidden="true")


@dataclass
class Chart:
    """One picture: a frame with axes, and what is drawn in it. `x` and `y` map values to pixels.

    Attributes:
        title, text: for readers of screens; `title` is also written above the frame.
    """

    width: float
    height: float
    title: str
    text: str
    left: float = 44
    right: float = 14
    top: float = 26
    bottom: float = 40
    heading: bool = True
    parts: list[str] = field(default_factory=list)
    x: Callable[[float], float] = float
    y: Callable[[float], float] = float

    def add(self, *parts: str) -> None:
        self.parts += parts

    def label(self, text: str, x: float, y: float, *, anchor: str = "start", room: float | None = None, **more: object) -> None:
        shown = text if room is None else fitted(text, room)
        full = tag("title", html.escape(text)) if shown != text else ""
        self.add(tag("text", html.escape(shown) + full, x=x, y=y, text_anchor=anchor, **more))

    def x_scale(
        self, low: float, high: float, *, at: Sequence[tuple[float, str]] | None = None, name: str = "", grid: bool = False
    ) -> None:
        """Set `x`, with tick labels below the frame (`at`: value and text; default: round numbers) and the axis's name below them."""
        self.x = scale(low, high, self.left, self.width - self.right)
        floor = self.height - self.bottom
        for value, text in at if at is not None else [(value, tick_text(value)) for value in ticks(low, high)]:
            if grid:
                self.add(tag("line", x1=self.x(value), x2=self.x(value), y1=self.top, y2=floor, class_="grid"))
            self.label(text, self.x(value), floor + 15, anchor="middle")
        if name:
            self.label(name, (self.left + self.width - self.right) / 2, self.height - 6, anchor="middle", class_="axis")

    def y_scale(self, low: float, high: float, *, name: str = "", count: int = 5) -> None:
        """Set `y`, with grid lines and labels of round numbers at the left."""
        self.y = scale(low, high, self.height - self.bottom, self.top)
        for value in ticks(low, high, count):
            self.add(tag("line", x1=self.left, x2=self.width - self.right, y1=self.y(value), y2=self.y(value), class_="grid"))
            self.label(tick_text(value), self.left - 6, self.y(value) + 4, anchor="end")
        if name:
            at = f"translate(12 {(self.top + self.height - self.bottom) / 2:.1f}) rotate(-90)"
            self.label(name, 0, 0, anchor="middle", transform=at, class_="axis")

    def line(self, points: Sequence[tuple[float, float]], series: int, *, marks: bool = True, stds: Sequence[float | None] = ()) -> None:
        """A line through `points` (in values), with marks, and bars of one standard deviation where there is one."""
        colour, mark, dash = look(series)
        places = [(self.x(x), self.y(y)) for x, y in points]
        inside = []
        for (x, _), (_, value), std in zip(places, points, stds):
            if std:
                inside.append(whisker(x, self.y(value - std), x, self.y(value + std)))
        if len(places) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            inside.append(tag("path", d=path, class_="stroke", stroke_dasharray=dash))
        if marks:
            inside += [marker(mark, x, y) for x, y in places]
        self.add(tag("g", "".join(inside), class_=colour))

    def render(self) -> str:
        """The SVG element."""
        about = tag("title", html.escape(self.title)) + tag("desc", html.escape(self.text))
        head = ""
        if self.heading:
            chart = Chart(self.width, self.height, "", "")
            chart.label(self.title, 6, 15, room=self.width - 12, class_="heading")
            head = "".join(chart.parts)
        size = {"width": self.width, "height": self.height, "viewBox": f"0 0 {self.width:g} {self.height:g}"}
        return tag("svg", about + head + "".join(self.parts), **size, role="img", aria_label=self.title, class_="chart")


def whisker(x1: float, y1: float, x2: float, y2: float) -> str:
    """A bar with caps, upright or level."""
    if x1 == x2:
        path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}M{x1 - 3:.1f} {y1:.1f}h6M{x2 - 3:.1f} {y2:.1f}h6"
    else:
        path = f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}M{x1:.1f} {y1 - 3:.1f}v6M{x2:.1f} {y2 - 3:.1f}v6"
    return tag("path", d=path, class_="stroke thin")
