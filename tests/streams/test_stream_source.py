import os

import numpy as np
import pytest

from vismem.errors import SourceError, UsageError
from vismem.streams import open_stream


def refusal(source, kind=SourceError, **options):
    with pytest.raises(kind) as caught:
        open_stream(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_path_suggests_close_names(tmp_path):
    (tmp_path / "kitchen.mp4").write_text("x")
    assert refusal(tmp_path / "kichen.mp4").endswith("did you mean kitchen.mp4?")
    assert "check the path" in refusal(tmp_path / "zzz")
    assert f"there is no folder {tmp_path / 'no'}" in refusal(tmp_path / "no" / "a.mp4")


def test_what_no_stream_can_read(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a.png").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    assert "is empty (0 bytes)" in refusal(str(tmp_path / "a.mp4"))
    assert f"give the folder that it lies in: {tmp_path}" in refusal(tmp_path / "a.png")
    assert "save it to a file first" in refusal(tmp_path / "pipe")
    assert "use rtsp" in refusal("ftp://example.com/a.mp4")


@pytest.mark.parametrize("source", ["", None, -1, True, 1.5])
def test_what_is_no_source(source):
    assert "a source is a path" in refusal(source, UsageError)


@pytest.mark.parametrize("fps", [0, -2, float("nan")])
def test_wrong_rate_is_refused_before_anything_is_opened(fps):
    assert "fps" in refusal("missing.mp4", UsageError, fps=fps)


def test_options_belong_to_a_kind_of_source(tmp_path):
    message = refusal(tmp_path, UsageError, topic="/camera")
    assert message == "unknown option 'topic' for image folders; its own options: rate"
    assert "its own options: none" in refusal("rtsp://127.0.0.1:1/", UsageError, rate=3)


def test_file_addresses_and_strings(tmp_path, video):
    path = video(tmp_path / "a b.mp4", [0, 0.1])
    assert len(list(open_stream(path.as_uri()))) == 2
    with open_stream(str(path), name="door") as stream:
        assert next(stream).stream == "door"
        assert np.isfinite(stream.duration)
