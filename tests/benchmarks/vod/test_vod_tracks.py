"""The track averages of DigitVOD."""

from __future__ import annotations

import pytest
import torch
from small_vod import HERE, THERE, named, random_found, seen
from torchvision.ops import box_iou


def tracks_one_by_one(vod, found, said) -> torch.Tensor:
    """The same, video by video, with lists."""
    out = said.clone()
    for video in range(len(said)):
        tracks = []  # box, sum, count, last
        for now in range(said.shape[1]):
            live = [t for t in tracks if now - t["last"] <= vod.tracks.PATIENCE]
            used = set()
            for peak in range(said.shape[2]):
                if found.objectness[video, now, peak] <= 0:
                    continue
                box, mine = found.boxes[video, now, peak], said[video, now, peak]
                best, overlap = None, 0.0
                for track in live:
                    near = float(box_iou(box[None], track["box"][None]))
                    if id(track) not in used and near > overlap:
                        best, overlap = track, near
                if best is None or overlap < vod.tracks.FOLLOWS:
                    best = {"sum": torch.zeros(10), "count": 0}
                    tracks.append(best)
                used.add(id(best))
                best["before"] = best.get("box", box)
                best |= {"sum": best["sum"] + mine, "count": best["count"] + 1}
                best |= {"next": box, "last": now}
                out[video, now, peak] = best["sum"] / best["count"]
            for track in tracks:
                track["box"] = track.pop("next", track.get("box"))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_tracks_are_those_of_plain_loops(vod, seed) -> None:
    found = random_found(vod, 3, 10, seed, peaks=5)
    said = torch.randn(3, 10, 5, 10, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    ours, nbytes = vod.tracks.track_mean(found, said)
    torch.testing.assert_close(ours, tracks_one_by_one(vod, found, said))
    assert not torch.allclose(ours, said) and 0 < nbytes < 4000


def test_a_track_averages_until_it_jumps_or_is_gone_too_long(vod) -> None:
    patience = vod.tracks.PATIENCE
    for away, remembered in ((patience - 1, True), (patience, False)):
        frames = [[HERE]] * 3 + [[THERE]] * away + [[HERE]]
        found = seen(vod, frames, [[0.9]] * len(frames))
        said = named([[0], [1], [1]] + [[2]] * away + [[3]])
        out, _ = vod.tracks.track_mean(found, said)
        torch.testing.assert_close(out[0, 2, 0, :2], torch.tensor([1 / 3, 2 / 3]))
        assert out[0, 3, 0, 2] == 1  # elsewhere: another track
        assert out[0, -1, 0, 3] == (0.25 if remembered else 1)


def test_a_sure_frame_may_count_for_more(vod) -> None:
    found = seen(vod, [[HERE], [HERE]], [[0.9], [0.1]])
    said = named([[0], [1]])
    equal, sure = (vod.tracks.track_mean(found, said, weigh)[0] for weigh in ("equal", "sure"))
    assert equal[0, 1, 0, 0] == 0.5 and sure[0, 1, 0, 0] == pytest.approx(0.9)
