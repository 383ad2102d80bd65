"""Draw the page: a header, a card for every stream, a legend.

Each stream has its most telling scenes in pictures, below them every scene over time, and its
episodic moments as a strip along the axis. Pillow alone draws it.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from vismem.heads.answer import clock
from vismem.picture.page import Color, Page
from vismem.picture.timeline import Axis, Span, apart, axes, join, packed, span_of, telling

if TYPE_CHECKING:
    from vismem.memory.slots import Slot

__all__ = ["Held", "draw", "level_colors"]

WIDTH, MARGIN, INSET = 1600, 56, 40  # of the page, around it, and around what a card shows
PAPER, CARD, HAIRLINE, BLANK = (250, 248, 244), (255, 255, 255), (232, 229, 222), (242, 240, 236)
INK, GREY, FAINT = (35, 46, 58), (108, 120, 132), (190, 195, 200)
MOMENTS = ((150, 160, 170), (190, 197, 204))  # in turn, so that neighbours can be told apart
KNOWN = {  # levels from sharp to coarse
    "recent": (226, 122, 58),
    "detail": (38, 104, 148),
    "synopsis": (122, 158, 118),
    "gist": (190, 168, 128),
}
OTHERS = (  # for levels of other names
    *((38, 140, 132), (168, 84, 140), (198, 158, 44), (100, 104, 184)),
    *((168, 86, 78), (92, 152, 206), (130, 110, 88)),
)
TILE, TILE_HEIGHT, TILE_GAP = 146, 112, 11  # a thumbnail's width, most height, and the gap
LEADERS = 44  # rows between the texts of the thumbnails and the lanes
LANES, PITCHES = 336, (26, 18, 12, 8)  # rows for all lanes, and for one: the first that will do


@dataclass(frozen=True, slots=True)
class Held:
    """What a memory holds of one stream.

    Args:
        slots: Of its visual bank; none if there is no such bank.
        thumbnail: Gives a slot's picture as JPEG, possibly empty.
        label: Says what was recognised in a slot, possibly nothing.
        moments: Start and end in seconds and frames of every episodic moment.
    """

    slots: Sequence[Slot]
    thumbnail: Callable[[Slot], bytes]
    label: Callable[[Slot], str]
    moments: Sequence[tuple[float, float, int]]

    @property
    def frames(self) -> int:
        """How many frames the slots stand for, or the moments where there are no slots."""
        weights = [slot.weight for slot in self.slots]
        return sum(weights or (frames for _, _, frames in self.moments))

    @property
    def span(self) -> Span | None:
        """First and last second of anything held; ``None`` if nothing is."""
        spans = [span_of(slot) for slot in self.slots]
        spans += [(start, end) for start, end, _ in self.moments]
        return join(spans) if spans else None


def draw(streams: Mapping[str, Held], *, title: str, nbytes: int, budget: int) -> Image.Image:
    """Draw a memory.

    Every slot is a thin line from when its scene was first seen to when it was last seen, a thicker
    one over the run that its picture is from, and a dot when that picture was taken. Thicker
    stands for more frames. Colours tell the levels of the bank.

    Args:
        streams: What is held, by name of stream; drawn below each other in this order.
        title: Heading, for example the name of the memory.
        nbytes: Bytes that the memory holds.
        budget: Bytes that it may hold.

    Returns:
        An RGB picture, 1600 pixels wide and as high as needed; the same for the same input.

    Example:
        >>> held = Held((), lambda slot: b"", lambda slot: "", moments=[(0.0, 5.0, 10)])
        >>> draw({"camera": held}, title="clip.mem", nbytes=10_000, budget=64_000_000).width
        1600
    """
    page = Page(WIDTH, PAPER)
    page.bottom = MARGIN
    known = [held.span for held in streams.values() if held.span] or [(0.0, 0.0)]
    spans = [held.span or known[0] for held in streams.values()]
    scales = axes(spans, MARGIN + INSET, WIDTH - MARGIN - INSET)
    _header(page, streams, title, nbytes, budget, shared=len(set(scales)) == 1)
    colors = level_colors(slot.level for held in streams.values() for slot in held.slots)
    for (name, held), axis in zip(streams.items(), scales, strict=True):
        _stream(page, name, held, axis, colors)
    _legend(page, streams, colors)
    page.bottom += MARGIN / 2
    return page.render()


def level_colors(levels: Iterable[str]) -> dict[str, Color]:
    """A colour for each level of a memory, in the order of a legend.

    Example:
        >>> list(level_colors(["level 1", "synopsis", "recent", "level 1"]))
        ['recent', 'synopsis', 'level 1']
    """
    present = set(levels)
    others = {level: OTHERS[n % len(OTHERS)] for n, level in enumerate(sorted(present - {*KNOWN}))}
    return {level: color for level, color in KNOWN.items() if level in present} | others


# --------------------------------------------------------------------------- parts of the page


def _header(
    page: Page,
    streams: Mapping[str, Held],
    title: str,
    nbytes: int,
    budget: int,
    shared: bool,
) -> None:
    """Title and figures; the span is that of the longest stream if they do not share an axis."""
    right, top = WIDTH - MARGIN, page.bottom
    page.text(MARGIN, top + 26, title, 34, INK, room=right - MARGIN)
    spans = [held.span for held in streams.values() if held.span]
    length, when = "0 s", "nothing is held yet"
    if spans:
        start, end = join(spans) if shared else max(spans, key=lambda span: span[1] - span[0])
        length, when = _duration(end - start), f"{clock(start)} - {clock(end)}"
    values = streams.values()
    facts = [
        ("SPAN" if shared or not spans else "LONGEST SPAN", length, when),
        ("FRAMES", f"{sum(held.frames for held in values):,}", ""),
        ("SLOTS", f"{sum(len(held.slots) for held in values):,}", ""),
        ("MOMENTS", f"{sum(len(held.moments) for held in values):,}", ""),
    ]
    x, captions, figures = float(MARGIN), top + 70, top + 102
    for caption, value, more in facts:
        widths = [page.text(x, captions, caption, 12, GREY)]
        after = page.text(x, figures, value, 26, INK) + 12
        widths.append(after + page.text(x + after, figures, more, 14, GREY))
        x += max(widths) + 44
    used = nbytes / budget if budget else float(nbytes > 0)
    left, share = (
        max(x, right - 460),
        f"{100 * used:.1f}%" if used >= 0.001 or not used else "<0.1%",
    )
    page.text(left, captions, "MEMORY", 12, GREY)
    after = page.text(left, figures, _size(nbytes), 26, INK) + 10
    page.text(left + after, figures, f"of {_size(budget)}", 14, GREY)
    page.text(right, figures, share, 14, GREY, "rs")
    page.box(left, figures + 12, right, figures + 20, HAIRLINE, 4)
    if nbytes:
        full = max(8.0, (right - left) * min(used, 1.0))
        page.box(left, figures + 12, left + full, figures + 20, INK, 4)
    page.bottom = figures + 46


def _stream(page: Page, name: str, held: Held, axis: Axis, colors: Mapping[str, Color]) -> None:
    """One card: pictures, lanes, moments and the axis."""
    top, right = page.bottom, WIDTH - MARGIN
    heading = top + INSET + 4
    wide = page.text(axis.left, heading, name, 20, INK, room=900)
    facts = [_count(len(held.slots), "slot")] if held.slots else []
    facts += [_count(len(held.moments), "moment"), _count(held.frames, "frame")]
    page.text(axis.left + wide + 14, heading, " · ".join(facts), 14, GREY)

    heaviest = max((slot.weight for slot in held.slots), default=1)
    for pitch in PITCHES:
        radius = _radius(heaviest, pitch)
        placed = packed(held.slots, axis, LANES // pitch, radius)
        if len(placed) == len(held.slots):
            break
    else:
        left_out = _count(len(held.slots) - len(placed), "lighter slot")
        page.text(axis.right, heading, f"{left_out} not drawn", 14, GREY, "rs")

    most = int(axis.right - axis.left + TILE_GAP) // (TILE + TILE_GAP)
    shown = telling(held.slots, axis, most, TILE + TILE_GAP)
    feet, lanes = _tiles(page, held, shown, axis, colors, heading + 22)
    rows = 1 + max((lane for _, lane in placed), default=-1)
    strip = lanes + rows * pitch + (12 if rows else 0)
    ground = strip + 18
    for tick in axis.ticks()[0]:
        page.line([(axis(tick), lanes), (axis(tick), ground + 5)], HAIRLINE)
    page.line([(axis.left, ground), (axis.right, ground)], FAINT)
    middles = {id(slot): lanes + (lane + 0.5) * pitch for slot, lane in placed}
    for slot, (x, y) in zip(shown, feet, strict=True):
        at, ends = axis(slot.time), middles.get(id(slot), lanes)
        page.line([(x, y), (x, y + 8), (at, lanes - 6), (at, ends)], FAINT)
    for slot, _ in placed:
        _mark(page, slot, axis, middles[id(slot)], radius(slot), colors[slot.level])
    for number, (start, end, _) in enumerate(held.moments):
        x = axis(start)
        page.box(x, strip, max(axis(end), x + 1.5), strip + 12, MOMENTS[number % 2], 1)
    bottom = _tick_texts(page, axis, ground + 22) + INSET - 16
    page.card(MARGIN, top, right, bottom, CARD, HAIRLINE)
    page.bottom = bottom + 24


def _radius(heaviest: int, pitch: float) -> Callable[[Slot], float]:
    """Of a slot's dot in pixels: grows with the logarithm of its weight, up to half a lane."""
    scale = math.log1p(max(heaviest, 1))
    return lambda slot: (0.35 + 0.65 * math.log1p(slot.weight) / scale) * (pitch / 2 - 1)


def _mark(page: Page, slot: Slot, axis: Axis, y: float, radius: float, color: Color) -> None:
    """A slot over time: when it was seen at all, the run of its picture, and its picture."""
    thin, thick = max(0.75, radius / 7), radius * 0.5
    page.box(axis(slot.first), y - thin, axis(slot.last), y + thin, _tint(color, 0.45))
    page.box(axis(slot.start), y - thick, axis(slot.end), y + thick, _tint(color, 0.6), thick)
    page.dot(axis(slot.time), y, radius + 1, CARD)
    page.dot(axis(slot.time), y, radius, color)


def _tint(color: Color, share: float) -> Color:
    """A colour thinned with white."""
    red, green, blue = (round(share * part + (1 - share) * 255) for part in color)
    return red, green, blue


def _tiles(
    page: Page,
    held: Held,
    shown: Sequence[Slot],
    axis: Axis,
    colors: Mapping[str, Color],
    top: float,
) -> tuple[list[tuple[float, float]], float]:
    """Thumbnails with their texts; gives where their lines begin, and where the lanes do."""
    if not shown:
        return [], top
    images = [_thumbnail(held.thumbnail(slot)) for slot in shown]
    bottom = top + max(image.height if image else TILE * 9 // 16 for image in images)
    centres = apart(
        [axis(slot.time) for slot in shown],
        TILE + TILE_GAP,
        axis.left + TILE / 2,
        axis.right - TILE / 2,
    )
    for slot, image, centre in zip(shown, images, centres, strict=True):
        left = round(centre - TILE / 2)
        if image is None:
            page.box(left, bottom - TILE * 9 // 16, left + TILE, bottom, BLANK)
            page.text(centre, bottom - TILE * 9 // 32, "no picture", 13, FAINT, "mm")
        else:
            page.picture(image, left + (TILE - image.width) // 2, bottom - image.height)
        page.box(left, bottom + 3, left + TILE, bottom + 6, colors[slot.level])
        when, weight = clock(slot.time).split(" ")[-1], _count(slot.weight, "frame")
        label = held.label(slot).strip()
        page.text(left, bottom + 25, label or when, 15, INK, room=TILE)
        page.text(left, bottom + 44, f"{when} · {weight}" if label else weight, 13, GREY, room=TILE)
    return [(centre, bottom + 54) for centre in centres], bottom + 54 + LEADERS


def _thumbnail(data: bytes) -> Image.Image | None:
    """A picture at the size of a tile; ``None`` if there is none or it is damaged."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return ImageOps.contain(image.convert("RGB"), (TILE, TILE_HEIGHT))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _tick_texts(page: Page, axis: Axis, y: float) -> float:
    """Times below the axis, and the date where it changes; gives where they end."""
    ticks, step = axis.ticks()
    told = ""
    for tick in ticks:
        date, _, text = clock(tick).rpartition(" ")
        if step < 1:
            text += f"{abs(tick) % 1:.1f}"[1:]
        elif axis.wall_clock and step >= 60:
            text = text[:-3]
        if step >= 86400 and date:
            date, text = "", date
        page.text(axis(tick), y, text, 13, GREY, "ms")
        if date != told:
            page.text(axis(tick), y + 17, date, 12, GREY, "ms")
            told = date
    return y + 17 if told else y


def _legend(page: Page, streams: Mapping[str, Held], colors: Mapping[str, Color]) -> None:
    """What the colours and the signs mean."""
    levels = Counter(slot.level for held in streams.values() for slot in held.slots)
    x, y, sign = float(MARGIN), page.bottom + 6, (110, 120, 130)

    def entry(width: float, text: str, more: str = "") -> float:
        """Write beside a sign that is so wide; gives where the next begins."""
        after = x + width + 10
        after += page.text(after, y, text, 14, INK, "lm", room=340) + 6
        return after + page.text(after, y, more, 14, GREY, "lm") + 26

    for level, color in colors.items():
        if x > WIDTH - MARGIN - 440:
            x, y = float(MARGIN), y + 26
        page.dot(x + 6, y, 6, color)
        x = entry(12, level, f"{levels[level]:,}")
    if colors:
        x, y = float(MARGIN), y + 30
        page.box(x, y - 1, x + 44, y + 1, _tint(sign, 0.45))
        x = entry(44, "scene, first to last seen")
        page.box(x, y - 4, x + 44, y + 4, _tint(sign, 0.6), 4)
        x = entry(44, "in view around its picture")
        page.dot(x + 3, y, 3, sign)
        page.dot(x + 16, y, 7, sign)
        x = entry(23, "when its picture was taken, larger for more frames")
    if any(held.moments for held in streams.values()):
        for number in range(2):
            page.box(x + 23 * number, y - 6, x + 23 * number + 21, y + 6, MOMENTS[number], 1)
        entry(44, "episodic moments")
    page.bottom = y + 12


# --------------------------------------------------------------------------- figures in words


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _size(nbytes: int) -> str:
    """Write bytes to three digits, in the units that budgets are given in."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            digits = max(0, 2 - int(math.log10(nbytes / size)))
            return f"{round(nbytes / size, digits):g} {unit}"
    return f"{nbytes} B"


def _duration(seconds: float) -> str:
    """Write a length of time by its two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    large = next(n for n, (_, size) in enumerate(units) if round(seconds) >= size)
    (unit, size), (part, small) = units[large : large + 2]
    whole, rest = divmod(round(seconds / small), size // small)
    return f"{whole:,} {unit}" + (f" {rest} {part}" if rest else "")
