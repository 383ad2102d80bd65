import numpy as np
import pytest

from vismem.errors import SourceError, UsageError
from vismem.streams import file as video_file
from vismem.streams import open_stream, sample

av = pytest.importorskip("av")
pytest.importorskip("decord")

DECODERS = ("pyav", "decord")
CFR = [i / 30 for i in range(60)]
VFR = list(5 + np.cumsum(np.random.default_rng(3).uniform(0.01, 0.3, 60)))
VIDEOS = {
    "cfr": ("a.mp4", CFR, {}),
    "vfr, starts at 5 s": ("a.mp4", VFR, {}),
    "one keyframe": ("a.mp4", CFR, {"gop": 1000}),
    "all keyframes": ("a.mp4", CFR, {"gop": 1, "b_frames": 0}),
    "short groups with B-frames": ("a.mp4", CFR, {"gop": 3, "b_frames": 2}),
    "open groups": ("a.mp4", CFR, {"gop": 10, "x264-params": "open-gop=1:bframes=3:b-adapt=0"}),
    "matroska": ("a.mkv", CFR, {}),
}


@pytest.mark.parametrize("fps", [None, 30, 7, 2, 0.7])
@pytest.mark.parametrize("kind", VIDEOS)
def test_both_decoders_give_the_same_true_frames(tmp_path, video, number, kind, fps):
    name, times, options = VIDEOS[kind]
    path = video(tmp_path / name, times, **options)
    relative = [t - times[0] for t in times]
    streams = [open_stream(path, fps=fps, decoder=decoder) for decoder in DECODERS]
    frames = [list(stream) for stream in streams]
    for stream, got in zip(streams, frames, strict=True):
        assert [frame.index for frame in got] == sample(relative, fps)
        assert [number(frame.image) for frame in got] == [frame.index for frame in got]
        expected = [relative[frame.index] for frame in got]
        assert np.allclose([frame.timestamp for frame in got], expected, atol=1e-3)
        assert stream.stats.frames + stream.stats.skipped == len(times)
        assert (stream.stats.dropped, stream.stats.problems) == (0, [])
        assert (stream.name, stream.live, stream.size) == ("a", False, (96, 64))
        assert stream.duration == pytest.approx(relative[-1], abs=2e-3)
    for ours, theirs in zip(*frames, strict=True):
        assert np.abs(ours.image.astype(int) - theirs.image).mean() < 3


def test_skipped_frames_are_not_decoded(tmp_path, video, monkeypatch):
    path = video(tmp_path / "a.mp4", [i / 30 for i in range(300)], gop=30, b_frames=2)
    packets = []
    inner = video_file.PyAVDecoder._pictures
    monkeypatch.setattr(
        video_file.PyAVDecoder,
        "_pictures",
        lambda self, codec, packet, wanted: (
            packets.append(packet) or inner(self, codec, packet, wanted)
        ),
    )
    assert len(list(open_stream(path, fps=0.5, decoder="pyav"))) == 5
    assert sum(packet is not None for packet in packets) < 60  # of 300


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_phones_are_turned_upright(tmp_path, video, numbered, decoder, rotation):
    path = video(tmp_path / "a.mp4", CFR[:5], rotation=rotation)
    frame = next(iter(open_stream(path, decoder=decoder)))
    expected = np.rot90(numbered(0), rotation // 90)
    assert frame.image.shape == expected.shape
    assert np.abs(frame.image.astype(int) - expected).mean() < 25


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_truncated_mp4_gives_what_is_there(tmp_path, video, number):
    path = cut(video(tmp_path / "a.mp4", CFR, faststart=True, noise=True), 0.5)
    stream = open_stream(path)
    frames = list(stream)
    assert 10 < len(frames) < 50
    assert [number(frame.image) for frame in frames] == [frame.index for frame in frames]
    assert "file ends early" in stream.stats.problems[0] and "of 60 frames" in str(
        stream.stats.problems
    )


def test_read_errors_end_the_file(tmp_path, video, monkeypatch):
    path = video(tmp_path / "a.mp4", CFR)
    opened = av.open

    class Breaking:
        def __init__(self, path):
            self.inner = opened(path)
            self.streams, self.duration = self.inner.streams, self.inner.duration

        def demux(self, stream):
            for number, packet in enumerate(self.inner.demux(stream)):
                if number == 20:
                    raise av.FFmpegError(5, "Input/output error")
                yield packet

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.inner.close()

    monkeypatch.setattr(av, "open", Breaking)
    stream = open_stream(path)
    assert 15 < len(list(stream)) <= 20
    assert stream.stats.problems[0] == "file ends early: it holds 20 of 60 frames"


@pytest.mark.parametrize("decoder", DECODERS)
def test_truncated_matroska_gives_what_is_there(tmp_path, video, number, decoder):
    path = cut(video(tmp_path / "a.mkv", [i / 10 for i in range(60)], noise=True), 0.5)
    frames = list(open_stream(path, decoder=decoder))
    assert 10 < len(frames) < 50
    assert [number(frame.image) for frame in frames] == [frame.index for frame in frames]


@pytest.mark.parametrize("decoder", DECODERS)
def test_damage_inside_never_raises_and_is_counted(tmp_path, video, decoder):
    path = video(tmp_path / "a.mp4", CFR, noise=True, faststart=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(data))
    stream = open_stream(path, decoder=decoder)
    frames = list(stream)
    assert stream.stats.dropped > 0
    assert len(frames) + stream.stats.dropped == 60
    assert "frame cannot be decoded" in stream.stats.problems[0]
    assert frames[-1].index > 50  # it goes on after the damage


def test_decord_steps_in_where_pyav_is_missing_or_cannot(tmp_path, video, monkeypatch):
    path = video(tmp_path / "a.mp4", CFR[:5])
    monkeypatch.setattr(video_file, "find_spec", lambda module: None if module == "av" else module)
    stream = open_stream(path)
    assert isinstance(stream._decoder, video_file.DecordDecoder) and stream.stats.problems == []

    def refuse(path):
        raise ValueError("no such luck")

    monkeypatch.undo()
    monkeypatch.setitem(video_file._DECODERS, "pyav", ("av", refuse))
    stream = open_stream(path)
    assert len(list(stream)) == 5
    assert stream.stats.problems == ["PyAV cannot open it, decord does (no such luck)"]


def test_pyav_that_is_too_old_says_so(tmp_path, video, monkeypatch):
    path = video(tmp_path / "a.mp4", CFR[:5])
    monkeypatch.setattr(av, "VideoFrame", object)
    stream = open_stream(path)
    assert len(list(stream)) == 5
    assert "pip install -U 'av>=14.1'" in stream.stats.problems[0]


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate = 44100
        for number in range(20):
            frame.pts = number * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
@pytest.mark.parametrize("kind", ["text", "audio", "no index"])
def test_what_is_no_video_is_refused_in_one_line(tmp_path, video, kind, decoder):
    path = tmp_path / "a.mp4"
    if kind == "text":
        path.write_text("hello " * 200)
    elif kind == "audio":
        audio_only(path)
    else:
        cut(video(path, CFR), 0.5)
    with pytest.raises(SourceError) as caught:
        open_stream(path, decoder=decoder)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and "record or copy it again" in message
    assert ("holds no video" in message) == (kind == "audio")


def test_missing_pyav_is_named_where_it_would_help(tmp_path, video, monkeypatch):
    path = cut(video(tmp_path / "a.mp4", CFR, faststart=True, noise=True), 0.5)
    monkeypatch.setattr(video_file, "find_spec", lambda module: None if module == "av" else module)
    with pytest.raises(SourceError, match="pip install av"):
        open_stream(path)


def test_wrong_options(tmp_path, video):
    path = video(tmp_path / "a.mp4", CFR[:3])
    with pytest.raises(UsageError, match="decoder must be auto, pyav or decord"):
        open_stream(path, decoder="magic")
    with pytest.raises(UsageError, match="unknown option 'topic' for video files.*decoder"):
        open_stream(path, topic="/camera")
