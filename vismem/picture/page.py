"""`Page`: lines, dots, texts and pictures on paper that grows downwards; drawn with Pillow."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect
from collections.abc import Callable, Sequence
from typing import cast

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Color", "Page"]

Color = tuple[int, int, int]
SUPERSAMPLED = 2  # everything but pictures is drawn so much larger and then averaged


class Page:
    """Collects what is drawn; the height is known when all is there. Units are pixels.

    Args:
        width: Of the page.
        paper: Its colour.

    Attributes:
        bottom: Where the next thing begins; who draws moves it on.

    Example:
        >>> page = Page(320, paper=(255, 255, 255))
        >>> page.box(10, 10, 60, 20, (200, 0, 0))
        >>> page.bottom = 30
        >>> image = page.render()
        >>> image.size, image.getpixel((30, 15))
        ((320, 30), (200, 0, 0))
    """

    def __init__(self, width: int, paper: Color):
        self.width, self.paper, self.bottom = width, paper, 0.0
        self._cards: list[Callable[[ImageDraw.ImageDraw], None]] = []
        self._shapes: list[Callable[[ImageDraw.ImageDraw], None]] = []
        self._pictures: list[tuple[Image.Image, tuple[int, int]]] = []

    def line(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Draw a line of one pixel through points, on whole pixels so that it is crisp."""
        scaled = [(round(x) * SUPERSAMPLED, round(y) * SUPERSAMPLED) for x, y in points]
        self._shapes.append(lambda pen: pen.line(scaled, color, SUPERSAMPLED, "curve"))

    def box(
        self, x0: float, y0: float, x1: float, y1: float, color: Color, corner: float = 0
    ) -> None:
        """Fill a rectangle with rounded corners; at least half a pixel of it is seen."""
        left, top, right, bottom = (round(v * SUPERSAMPLED) for v in (x0, y0, x1, y1))
        right, bottom = max(left, right - 1), max(top, bottom - 1)  # they are drawn as well
        radius = min(corner * SUPERSAMPLED, (right - left) / 2, (bottom - top) / 2)
        self._shapes.append(
            lambda pen: pen.rounded_rectangle((left, top, right, bottom), radius, color)
        )

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill a circle."""
        centre = (x * SUPERSAMPLED, y * SUPERSAMPLED)
        self._shapes.append(lambda pen: pen.circle(centre, radius * SUPERSAMPLED, color))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int,
        color: Color,
        anchor: str = "ls",
        room: float = math.inf,
    ) -> float:
        """Write one line of text.

        The font is the one that comes with Pillow; it knows the letters and signs of English.
        Accents are left out, and other letters come as empty boxes.

        Args:
            x: Of the anchor.
            y: Of the anchor.
            text: What to write; line breaks become spaces.
            size: Of the letters.
            color: Of the letters.
            anchor: Which point of the text it is, in Pillow's letters: left on the baseline.
            room: The text is cut to this width.

        Returns:
            The width of what is written.
        """
        font = cast("ImageFont.FreeTypeFont", ImageFont.load_default(size * SUPERSAMPLED))
        shown = _fitted(text, font, room * SUPERSAMPLED)
        place = (x * SUPERSAMPLED, y * SUPERSAMPLED)
        self._shapes.append(lambda pen: pen.text(place, shown, color, font, anchor))
        return font.getlength(shown) / SUPERSAMPLED

    def picture(self, image: Image.Image, x: float, y: float) -> None:
        """Put a picture, pixel by pixel, above all else; ``x y`` is its upper left corner."""
        self._pictures.append((image, (round(x), round(y))))

    def card(self, x0: float, y0: float, x1: float, y1: float, color: Color, border: Color) -> None:
        """Fill a rectangle with round corners and a thin border, beneath all else."""
        corners = tuple(round(v * SUPERSAMPLED) for v in (x0, y0, x1, y1))
        self._cards.append(
            lambda pen: pen.rounded_rectangle(
                corners, 10 * SUPERSAMPLED, color, border, SUPERSAMPLED
            )
        )

    def render(self) -> Image.Image:
        """Give the page as an RGB picture, ``bottom`` pixels high."""
        size = (self.width * SUPERSAMPLED, math.ceil(self.bottom) * SUPERSAMPLED)
        large = Image.new("RGB", size, self.paper)
        pen = ImageDraw.Draw(large)
        for shape in (*self._cards, *self._shapes):
            shape(pen)
        image = large.reduce(SUPERSAMPLED)
        for picture, corner in self._pictures:
            image.paste(picture, corner)
        return image


def _fitted(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """One line of text without what the font lacks or cannot show, cut to a width."""
    plain = unicodedata.normalize("NFKD", " ".join(text.split()))
    plain = "".join(c for c in plain if unicodedata.category(c)[0] not in "MC")
    if font.getlength(plain) <= room:
        return plain
    fits = bisect(range(len(plain)), room, key=lambda n: font.getlength(plain[:n] + "…"))
    return plain[: max(fits - 1, 0)].rstrip() + "…"
