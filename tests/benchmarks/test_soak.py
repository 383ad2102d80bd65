"""A soak must measure what it says it measures."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def soak(script) -> ModuleType:
    return script("soak")


def test_ratio_is_of_the_last_and_the_second_block(soak: ModuleType) -> None:
    costs = np.concatenate([np.full(10, 9.0), np.full(10, 2.0), np.full(10, 8.0), np.full(10, 3.0)])
    costs[35] = 1000.0  # one commit does not count
    medians = soak.block_medians(costs, 10)
    assert medians == [9.0, 2.0, 8.0, 3.0]
    assert soak.last_to_second(medians) == 1.5
    assert soak.block_medians(costs[:39], 10) == [9.0, 2.0, 8.0]  # a part of a block is none


def test_slope_is_of_the_second_half(soak: ModuleType) -> None:
    assert soak.slope([0, 100, 200, 300, 300, 300, 300, 300]) == pytest.approx(0, abs=1e-9)
    assert soak.slope([0, 0, 0, 0, 7, 14, 21]) == pytest.approx(7)
    assert soak.slope([5]) == 0.0


def test_every_write_is_timed_and_nothing_is_encoded_again(soak: ModuleType) -> None:
    encoder = soak.LoopEncoder(noise=0.0, really=False, writes=5)
    pictures = [np.full((64, 64, 3), shade, np.uint8) for shade in (0, 200)]
    encoder.learn(pictures)
    seen = []
    encoder.after_write = lambda: seen.append(encoder.written)
    encodings = [encoder.encode([pictures[0]])[0] for _ in range(4)]
    assert seen == [1, 2, 3]
    assert np.isfinite(encoder.costs[:3]).all() and np.isnan(encoder.costs[3:]).all()
    assert np.isfinite(encoder.encoding[:4]).all() and np.isnan(encoder.encoding[4:]).all()
    assert not (encodings[0].tokens == encodings[1].tokens).all()
    assert (encodings[0].tokens == encodings[2].tokens).all()
    encoder.noise = 0.1
    assert not (encoder.encode(pictures[:1])[0].tokens == encodings[0].tokens).all()


def test_a_small_soak(soak: ModuleType, tmp_path: Path) -> None:
    encoder = soak.LoopEncoder(noise=0.05, really=False, writes=300)
    random = np.random.default_rng(0)
    pictures = list(random.integers(0, 256, (4, 64, 64, 3), np.uint8))
    encoder.learn(pictures)
    report = soak.soak(pictures, encoder, tmp_path / "soak.mem", budget="300kB", fps=1.0, asks=16)
    for seconds in (report.costs, report.encoding):
        assert len(seconds) == 300 and np.isfinite(seconds).all()
    assert 0.5 * report.budget < report.most <= report.budget == 300_000
    assert report.merged > 0
    assert len(report.busy) == len(report.idle) == 16
    assert len(report.disk) == 4  # at 0, 125, 250 and 300
    assert report.disk[-1] > 200_000 > report.disk[0]
    assert report.resident[0] > report.anonymous[0] > 0
    lines = soak.table(report).splitlines()
    assert lines[0].startswith("writes                  300 in ")


def test_a_question_that_fails_is_heard_of(soak: ModuleType) -> None:
    class Broken:
        def ask(self, question: str, *, wait: bool) -> None:
            raise ValueError(question)

    asker = soak.Asker(Broken())
    asker.ask()
    with pytest.raises(ValueError, match="a cat"):
        asker.finish()


@pytest.mark.parametrize(
    "arguments",
    [["--writes", "1"], ["--asks", "-1"], ["--budget", "much"], ["no-such-clip.mp4"]],
)
def test_wrong_arguments_end_in_one_line_before_anything_is_encoded(
    soak: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.delattr(soak.LoopEncoder, "learn")
    with pytest.raises(SystemExit) as exit_:
        soak.main(arguments)
    assert exit_.value.code in (2, 3)
    assert capsys.readouterr().err.count("\n") == 1
