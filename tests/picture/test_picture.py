"""The picture of a memory: what is in it, where, and that nothing breaks it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vismem.memory.flash import FlashConfig, FlashMemory
from vismem.memory.slots import Slot
from vismem.picture import Held, draw, level_colors
from vismem.picture import overview as picture
from vismem.picture.page import Page
from vismem.picture.timeline import Axis

NOTHING = torch.empty(0, dtype=torch.float16)
LEFT, RIGHT = picture.MARGIN + picture.INSET, picture.WIDTH - picture.MARGIN - picture.INSET
LEVELS = ("recent", "detail", "synopsis", "gist", "fine", "middle", "coarse", "level 1", "level 2")


def slot(
    at: float,
    weight: int = 1,
    level: str = "detail",
    seen: tuple[float, float] | None = None,
    run: tuple[float, float] | None = None,
) -> Slot:
    start, end = run or (at, at)
    first, last = seen or (start, end)
    return Slot(at, start, end, first, last, weight, 0, NOTHING, (1, 1), NOTHING, b"", level)


def jpeg(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95)
    return file.getvalue()


def held(
    slots: Sequence[Slot] = (),
    moments: Sequence[tuple[float, float, int]] = (),
    thumbnail: bytes = b"",
    label: str = "",
) -> Held:
    return Held(slots, lambda _: thumbnail, lambda _: label, moments)


def page_of(*streams: Held, **facts: Any) -> Image.Image:
    given: Mapping[str, Held] = {f"camera {n}": one for n, one in enumerate(streams)}
    return draw(given, **{"title": "clip.mem", "nbytes": 10, "budget": 100, **facts})


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def rows_of(image: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Rows in which a colour is found."""
    return np.flatnonzero((pixels(image) == color).all(-1).any(-1))


def strip_top(image: Image.Image) -> int:
    return int(rows_of(image, picture.MOMENTS[0])[0])


def share_of(image: Image.Image, color: tuple[int, int, int]) -> int:
    return int((pixels(image) == color).all(-1).sum())


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that is written on a page, as it was before it was cut."""
    words: list[str] = []
    write = Page.text

    def text(page: Page, x: float, y: float, text: str, *look: Any, **more: Any) -> float:
        words.append(text)
        return write(page, x, y, text, *look, **more)

    monkeypatch.setattr(Page, "text", text)
    return words


class TestPage:
    def test_streams_stand_below_each_other(self):
        one = held([slot(n, level="recent") for n in (0.0, 9.0)], [(0.0, 9.0, 2)])
        heights = [page_of(*[one] * count).height for count in (0, 1, 2, 3)]
        assert all(page_of(*[one] * n).size[0] == 1600 for n in (0, 1, 2))
        steps = np.diff(heights)
        assert steps[1] == steps[2] > 200
        assert page_of(one).mode == "RGB"

    def test_the_same_memory_gives_the_same_pixels(self):
        def drawn() -> bytes:
            rng = np.random.default_rng(0)
            times = rng.uniform(0, 900, 80).tolist()
            slots = [slot(t, int(rng.integers(1, 99)), seen=(t, t + 50)) for t in times]
            return page_of(held(slots, [(0.0, 950.0, 5)], label="a mug")).tobytes()

        assert drawn() == drawn()

    @pytest.mark.parametrize("used", [0.0, 0.25, 0.5, 1.0, 3.0])
    def test_the_bar_is_as_long_as_the_budget_is_used(self, used: float):
        image = pixels(page_of(nbytes=int(used * 1000), budget=1000))
        bar = image[picture.MARGIN + 102 + 16, picture.WIDTH - picture.MARGIN - 460 :]
        filled = (bar == picture.INK).all(-1).sum()
        assert filled == pytest.approx(460 * min(used, 1), abs=2)

    def test_a_trace_of_the_budget_is_seen(self):
        image = page_of(nbytes=1, budget=10**9)
        assert (pixels(image)[picture.MARGIN + 102 + 16] == picture.INK).all(-1).sum() >= 6

    def test_nothing_sticks_out(self):
        many = [slot(float(n), n + 1, f"a level of a long name {n}") for n in range(9)]
        image = pixels(
            page_of(held(many, [(0.0, 8.0, 9)], label="wide " * 50), title="title " * 99)
        )
        edges = (image[:, :50], image[:, -50:], image[:20], image[-12:])
        assert all((edge == picture.PAPER).all() for edge in edges)

    @pytest.mark.parametrize("start", [0.0, 1.7e9, -40.0, 86400.0 * 3])
    @pytest.mark.parametrize("length", [0.0, 0.3, 5.0, 90.0, 4000.0, 3e5, 4e8])
    def test_the_axis_stays_on_its_card(self, start: float, length: float):
        image = pixels(page_of(held([slot(start), slot(start + length)])))
        assert (image[:, : picture.MARGIN - 4] == picture.PAPER).all()
        inside = image[240:-100, picture.MARGIN + 2 : picture.MARGIN + 6]
        assert (inside == picture.CARD).all(-1).mean() > 0.9
        assert (inside[-130:-60] == picture.CARD).all(), "texts of the axis reach the border"


class TestSlots:
    def test_every_level_has_its_colour_where_its_slot_is(self):
        times = [10.0 * n for n in range(len(LEVELS))]
        slots = [slot(t, level=level) for t, level in zip(times, LEVELS, strict=True)]
        image = page_of(held(slots, [(0.0, 80.0, 8)]))
        axis, row = Axis(0.0, 80.0, LEFT, RIGHT), strip_top(image) - 12 - 13
        colors = level_colors(LEVELS)
        assert len(set(colors.values())) == len(LEVELS)
        for level, at in zip(LEVELS, times, strict=True):
            assert image.getpixel((round(axis(at)), row)) == colors[level], level

    def test_the_legend_names_every_level(self):
        one = [slot(1.0, level="fine")]
        names = [page_of(held([*one, slot(2.0, level=n)], [(0.0, 3.0, 1)])) for n in "ab"]
        bottoms = [pixels(image)[image.height - 100 :] for image in names]
        assert (bottoms[0] != bottoms[1]).any()
        for image in names:
            legend = image.crop((0, image.height - 100, 1600, image.height))
            assert share_of(legend, level_colors(["fine"])["fine"]) > 60

    def test_lines_tell_when_it_was_seen_and_marks_the_run(self):
        image = page_of(held([slot(50.0, seen=(0.0, 100.0), run=(40.0, 70.0))], [(0.0, 100.0, 1)]))
        axis, row = Axis(0.0, 100.0, LEFT, RIGHT), strip_top(image) - 12 - 13
        color = level_colors(["detail"])["detail"]
        thin, thick = picture._tint(color, 0.45), picture._tint(color, 0.6)
        at = {s: image.getpixel((round(axis(s)), row)) for s in (1, 38, 42, 50, 68, 72, 99)}
        assert at == {1: thin, 38: thin, 42: thick, 50: color, 68: thick, 72: thin, 99: thin}
        beside = [image.getpixel((round(axis(s)), row - 4)) for s in (38, 42)]
        assert beside == [picture.CARD, thick]

    def test_heavier_slots_have_larger_dots(self):
        def area(weight: int) -> int:
            image = page_of(held([slot(0.0, weight, "recent"), slot(9.0, 1000)]))
            lanes = image.crop((LEFT - 20, 400, LEFT + 20, image.height - 100))
            return share_of(lanes, level_colors(["recent"])["recent"])

        areas = [area(weight) for weight in (1, 10, 100, 1000)]
        assert all(b > a + 20 for a, b in itertools.pairwise(areas))

    def test_a_line_joins_a_thumbnail_with_its_dot(self):
        image = page_of(held([slot(0.0), slot(60.0, 9, seen=(20.0, 100.0))], [(0.0, 100.0, 1)]))
        axis, above = Axis(0.0, 100.0, LEFT, RIGHT), strip_top(image) - 12 - 26 - 3
        leaders = (pixels(image)[above] == picture.FAINT).all(-1)
        assert np.flatnonzero(leaders) == pytest.approx([axis(0.0), axis(60.0)], abs=1)

    def test_what_finds_no_place_is_counted(self, written: list[str]):
        crowd = [slot(50.0, seen=(0.0, 100.0)) for _ in range(50)]
        page_of(held(crowd))
        lanes = picture.LANES // picture.PITCHES[-1]
        assert f"{50 - lanes} lighter slots not drawn" in written
        written.clear()
        page_of(held(crowd[:lanes]))
        assert not any("not drawn" in words for words in written)
        assert {"42", "42 slots · 0 moments · 42 frames"} <= set(written)

    def test_the_picture_of_two_thousand_slots_is_no_higher(self):
        rng = np.random.default_rng(1)
        times = np.sort(rng.uniform(0, 86400, 2000)).tolist()
        slots = [
            slot(t, 1 + int(rng.pareto(1)), seen=(t, t + rng.exponential(3000))) for t in times
        ]
        image = page_of(held(slots))
        assert image.height < 1000
        assert share_of(image, level_colors(["detail"])["detail"]) > 3000


class TestThumbnails:
    TILE = np.zeros((82, picture.TILE, 3), np.uint8)
    TILE[:41, :70], TILE[41:, 70:], TILE[:41, 70:] = (200, 30, 30), (30, 30, 200), (30, 160, 30)

    def found(self, image: Image.Image, data: bytes, x: int) -> list[int]:
        """Rows at which a thumbnail is in the picture, pixel for pixel."""
        tile = pixels(Image.open(io.BytesIO(data)))
        height, width = tile.shape[:2]
        column = pixels(image)[:, x : x + width]
        return [y for y in range(image.height - height) if (column[y : y + height] == tile).all()]

    def test_its_pixels_are_in_the_picture_above_its_dot(self):
        data = jpeg(self.TILE)
        image = page_of(held([slot(5.0)], [(0.0, 10.0, 3)], data))
        middle = (LEFT + RIGHT) // 2
        (row,) = self.found(image, data, middle - picture.TILE // 2)
        assert row + 82 < strip_top(image) - 60

    @pytest.mark.parametrize("shape", [(164, 292), (41, 73), (400, 60), (10, 900), (1, 1)])
    def test_any_size_fits_a_tile(self, shape: tuple[int, int]):
        data = jpeg(np.full((*shape, 3), (250, 0, 250), np.uint8))
        image = pixels(page_of(held([slot(5.0)], thumbnail=data))).astype(int)
        there = (np.abs(image - (250, 0, 250)) < 12).all(-1)
        rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert columns.mean() == pytest.approx((LEFT + RIGHT) / 2, abs=2)
        assert height <= picture.TILE_HEIGHT
        assert width <= picture.TILE
        assert height == picture.TILE_HEIGHT or width == picture.TILE
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.5)

    def test_each_slot_has_its_own(self):
        colors = {0.0: (250, 0, 250), 50.0: (0, 250, 250), 100.0: (120, 60, 0)}
        three = Held(
            [slot(at) for at in colors],
            lambda one: jpeg(np.full((82, 146, 3), colors[one.time], np.uint8)),
            lambda one: "",
            (),
        )
        image = pixels(page_of(three)).astype(int)
        centres = []
        for color in colors.values():
            there = (np.abs(image - color) < 12).all(-1)
            assert there.sum() > 0.95 * 82 * 146
            centres.append(np.flatnonzero(there.any(0)).mean())
        assert centres == pytest.approx([LEFT + 73, (LEFT + RIGHT) / 2, RIGHT - 73], abs=2)

    @pytest.mark.parametrize(
        "data",
        [b"", b"\xff\xd8\xff nonsense", jpeg(TILE)[:300], jpeg(TILE)[:-400], jpeg(TILE, "PNG")],
        ids=["empty", "nonsense", "header", "cut off", "no JPEG"],
    )
    def test_a_broken_one_is_a_blank_tile(self, data: bytes):
        image = page_of(held([slot(5.0)], thumbnail=data))
        blank = share_of(image, picture.BLANK)
        assert 0.8 * picture.TILE * 82 < blank <= picture.TILE * 83

    def test_the_most_telling_are_shown_and_the_others_not_asked_for(self):
        asked: list[float] = []
        slots = [slot(float(n), 2 + (n % 7)) for n in range(500)]
        many = Held(slots, lambda one: asked.append(one.time) or b"", lambda one: "", ())
        page_of(many)
        assert len(asked) == 9
        assert asked == sorted(asked)


class TestWords:
    def label(self, text: str) -> bytes:
        return page_of(held([slot(5.0)], label=text)).tobytes()

    def test_long_labels_are_cut(self):
        assert self.label("W" * 60) == self.label("W" * 4000) != self.label("W" * 5)

    def test_accents_are_left_out_and_line_breaks_become_spaces(self):
        assert self.label("Café\nMüller\u200b") == self.label("Cafe Muller")

    def test_letters_that_the_font_lacks_are_seen_as_boxes(self):
        assert self.label("猫") == self.label("ж") != self.label("")
        assert self.label("猫") != self.label("猫猫")

    @pytest.mark.parametrize("room", [0, 5, 40, 100, 1000])
    def test_a_text_keeps_to_its_room(self, room: int):
        page = Page(400, (255, 255, 255))
        wide = page.text(0, 20, "what a long and winding text", 14, (0, 0, 0), room=room)
        whole = page.text(0, 60, "what a long and winding text", 14, (0, 0, 0))
        assert min(0.8 * room - 3, whole) <= wide <= max(room, 10)
        page.bottom = 30
        assert (pixels(page.render())[:, int(max(room, 10)) + 2 :] == 255).all()

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [
            (0, "0 s"),
            (46.5, "46.5 s"),
            (59.99, "60 s"),
            (60, "1 min"),
            (754, "12 min 34 s"),
            (7199.6, "2 h"),
            (7260, "2 h 1 min"),
            (86400 * 1.5, "1 d 12 h"),
            (86399.9, "1 d"),
            (86400 * 4000, "4,000 d"),
        ],
    )
    def test_lengths_of_time(self, seconds: float, words: str):
        assert picture._duration(seconds) == words

    @pytest.mark.parametrize(
        ("nbytes", "words"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (9000, "9 kB"),
            (8960, "8.96 kB"),
            (3_100_000, "3.1 MB"),
            (64_000_000, "64 MB"),
            (123_456_789, "123 MB"),
            (10**12, "1000 GB"),
        ],
    )
    def test_sizes(self, nbytes: int, words: str):
        assert picture._size(nbytes) == words

    def test_times_on_the_axis(self, written: list[str]):
        def told(start: float, end: float) -> list[str]:
            written.clear()
            picture._tick_texts(Page(1600, picture.PAPER), Axis(start, end, 0, 1000), 0)
            return list(written)

        assert told(0, 46)[:2] == ["0:00", "0:10"]
        assert told(-0.5, 0.5) == ["-0:00.4", "-0:00.2", "0:00.0", "0:00.2", "0:00.4"]
        assert told(0, 7200)[-1] == "2:00:00"
        noon = 1_750_000_000 // 86400 * 86400 + 43200
        hours = told(noon, noon + 86400)
        assert len([word for word in hours if word.count("-") == 2]) == 2
        assert all(word.count(":") == 1 for word in hours if "-" not in word)
        assert all(word.count("-") == 2 for word in told(noon, noon + 30 * 86400))


class TestExtremes:
    def test_a_memory_without_streams(self):
        assert page_of(nbytes=0, budget=0).size[0] == 1600

    def test_a_stream_of_nothing(self):
        assert page_of(held()).height < page_of(held([slot(1.0)])).height

    def test_a_stream_of_nothing_does_not_part_the_others(self, written: list[str]):
        page_of(held([slot(1.7e9), slot(1.7e9 + 60)]), held())
        assert "SPAN" in written
        written.clear()
        page_of(held([slot(1.7e9), slot(1.7e9 + 60)]), held([slot(0.0), slot(9.0)]))
        assert {"LONGEST SPAN", "1 min"} <= set(written)

    def test_moments_alone(self):
        image = page_of(held(moments=[(3.0 * n, 3.0 * n + 2.5, 5) for n in range(16)]))
        row = pixels(image)[strip_top(image) + 5]
        for color in picture.MOMENTS:  # eight each, of a nineteenth of the axis
            there = (row == color).all(-1).sum()
            assert there == pytest.approx(8 * 2.5 / 47.5 * (RIGHT - LEFT), rel=0.05)

    def test_a_moment_of_an_instant_is_seen(self):
        image = page_of(held(moments=[(0.0, 9.0, 1), (5e5, 5e5, 1)]))
        assert share_of(image.crop((RIGHT - 4, 200, RIGHT + 4, image.height)), picture.MOMENTS[1])

    def test_one_slot_of_one_instant(self):
        image = page_of(held([slot(12.5)]))
        middle = pixels(image)[400:-100, (LEFT + RIGHT) // 2]
        assert (middle == level_colors(["detail"])["detail"]).all(-1).any()

    def test_many_slots_of_one_instant(self):
        assert page_of(held([slot(7.0, n + 1) for n in range(60)])).height < 1000

    def test_a_real_bank_is_drawn(self):
        memory = FlashMemory(FlashConfig(token_dim=4, max_note=8), budget="20kB")
        generator = torch.Generator().manual_seed(0)
        scenes = torch.randn(3, 4, 4, generator=generator)
        for second in range(60):
            memory.write(scenes[second // 10 % 3], float(second), note=b"%d" % second)
        slots = memory.snapshot().slots()
        stream = Held(slots, lambda one: b"", lambda one: one.note.decode(), ())
        image = draw({"camera": stream}, title="x.mem", nbytes=memory.nbytes, budget=20_000)
        for color in level_colors(one.level for one in slots).values():
            assert share_of(image, color) > 100
