"""A source in real time: paced, paused, late, played again, and never left running."""

from __future__ import annotations

import time

import numpy as np
from scripted import Scripted, every, until
from vismem.apps.demo.player import Player
from vismem.apps.demo.webcam import PushedStream

from vismem.frame import Frame


def play(stream_times: list[float], see: object, **how: object) -> Player:
    how = {"seconds": 60.0, **how}
    return Player(lambda: Scripted(stream_times), see, **how)  # type: ignore[arg-type]


def test_frames_come_at_their_times() -> None:
    seen: list[tuple[float, float]] = []
    began = time.monotonic()
    times = [5.0 + at for at in every(0.1, 8)]  # a recording need not begin at 0
    with play(times, lambda f, late: seen.append((f.timestamp, time.monotonic() - began))) as p:
        until(lambda: p.ended)
    assert len(seen) + p.dropped == 8
    assert {round(at, 3) for at, _ in seen} <= {round(at, 3) for at in every(0.1, 8)}
    assert all(at <= when + 0.02 for at, when in seen)  # never early


def test_rounds_go_on_in_time() -> None:
    seen: list[float] = []
    with play(every(0.05, 5), lambda f, late: seen.append(f.timestamp), again=True):
        until(lambda: len(seen) > 11)
    assert seen == sorted(seen) and len(set(seen)) == len(seen)
    assert abs(seen[5] - 0.25) < 1e-6  # one step after the last frame of the first round


def test_whoever_is_slow_misses_frames_and_time_goes_on() -> None:
    seen: list[float] = []

    def slow(frame: Frame, late: float) -> None:
        seen.append(frame.timestamp)
        time.sleep(0.15)

    began = time.monotonic()
    with play(every(0.03, 50), slow) as player:
        until(lambda: player.ended)
        assert player.dropped > 15 and player.dropped + len(seen) == 50
    assert time.monotonic() - began < 3.0  # in 1.5 s of the recording, not in 7.5


def test_pausing_holds_and_costs_nothing() -> None:
    seen: list[float] = []
    with play(every(0.05, 40), lambda f, late: seen.append(late)) as player:
        until(lambda: len(seen) > 3)
        player.pause()
        until(lambda: player.paused)
        time.sleep(0.1)
        held = len(seen)
        time.sleep(0.4)
        assert len(seen) == held
        player.resume()
        until(lambda: player.ended)
        assert len(seen) + player.dropped == 40 and player.dropped < 20


def test_nobody_plays_for_ever_alone() -> None:
    seen: list[float] = []
    see = lambda f, late: seen.append(late)  # noqa: E731
    with play(every(0.05, 100), see, again=True, seconds=0.3) as player:
        until(lambda: player.paused)
        assert 3 <= len(seen) <= 15
        player.resume()
        until(lambda: len(seen) > 16 or player.paused)


def test_a_source_that_breaks_says_so() -> None:
    class Broken(Scripted):
        def _read(self):  # type: ignore[no-untyped-def]
            yield Frame(np.zeros((4, 4, 3), np.uint8), 0.0)
            raise RuntimeError("secret path /home/me")

    with Player(lambda: Broken([]), lambda f, late: None, seconds=9) as player:
        until(lambda: player.ended)
        assert "RuntimeError" in player.problem and "secret" not in player.problem


def test_closing_ends_a_player_that_waits() -> None:
    for paused in (False, True):
        player = play([0.0, 1000.0], lambda f, late: None)
        if paused:
            player.pause()
        began = time.monotonic()
        player.close()
        assert time.monotonic() - began < 2.0
    camera = PushedStream("webcam", pixels=100)
    player = Player(lambda: camera, lambda f, late: None, seconds=9)
    player.close()
    assert player.ended
