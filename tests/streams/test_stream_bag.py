import cv2
import numpy as np
import pytest
from recorded import ROS1, ROS2, START, Messages
from rosbags.rosbag2 import StoragePlugin

from vismem.errors import SourceError
from vismem.streams import open_stream
from vismem.streams.messages import depth_of, picture_of, pose_of


def flat(value, shape=(4, 6)):
    return np.full((*shape, 3), value, np.uint8)


def kitchen(store=ROS2, frames=10):
    """Ten frames a second, 20 poses a second, depth 20 ms after each picture, two cameras."""
    bag = Messages(store)
    bag.add("/front/camera_info", START, bag.info(START, 500.0))
    bag.add("/rear/camera_info", START, bag.info(START, 900.0))
    for number in range(frames):
        seconds = START + number / 10
        bag.add("/front/image", seconds + 0.03, bag.image(flat(number), "rgb8", seconds))
        bag.add("/rear/image", seconds, bag.compressed(flat(100 + number), seconds))
        depth = np.full((4, 6), 1000 + number, np.uint16)
        bag.add("/front/depth", seconds + 0.2, bag.image(depth, "16UC1", seconds + 0.02))
    for number in range(2 * frames):
        seconds = START + number / 20 - 0.01
        bag.add("/pose", seconds + 0.1, bag.pose(seconds, (float(number), 0.0, 0.0)))
    return bag


def bag_path(tmp_path, kind):
    if kind == "ros1":
        return kitchen(ROS1).write(tmp_path / "kitchen.bag")
    storage = StoragePlugin.SQLITE3 if "db3" in kind else StoragePlugin.MCAP
    folder = kitchen().write(tmp_path / "kitchen", storage)
    return next(folder.glob("*.[md][cb]*")) if "file" in kind else folder


@pytest.mark.parametrize("kind", ["mcap", "db3", "mcap file", "db3 file", "ros1"])
def test_every_kind_of_bag(tmp_path, kind):
    stream = open_stream(bag_path(tmp_path, kind))
    assert stream.name == "kitchen" and stream.size == (6, 4) and 0.9 < stream.duration < 1.3
    frames = list(stream)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == list(range(10))
    assert np.allclose([frame.timestamp - START for frame in frames], np.arange(10) / 10)
    # The pose at the picture's time: a fifth of the way to the next, though recorded later.
    assert np.allclose([frame.pose[0, 3] for frame in frames], [2 * n + 0.2 for n in range(10)])
    assert [round(float(frame.depth[0, 0]) * 1000) for frame in frames] == [
        1000 + number for number in range(10)
    ]
    assert {frame.intrinsics[0, 0] for frame in frames} == {500.0}
    assert stream.stats.problems == [] and stream.stats.dropped == 0


def test_other_topic_and_sampling(tmp_path):
    stream = open_stream(bag_path(tmp_path, "mcap"), topic="/rear/image", fps=5)
    frames = list(stream)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [100, 102, 104, 106, 108]
    assert frames[0].intrinsics[0, 0] == 900.0
    assert (stream.stats.frames, stream.stats.skipped) == (5, 5)


def test_poses_and_depth_that_are_too_far_away(tmp_path):
    bag = Messages()
    for number, seconds in enumerate((START, START + 1, START + 2, START + 3)):
        bag.add("/image", seconds, bag.image(flat(number), "rgb8", seconds))
    for after, x in ((0.06, 1.0), (0.8, 2.0), (1.2, 4.0), (1.96, 5.0)):
        bag.add("/pose", START + after, bag.pose(START + after, (x, 0.0, 0.0)))
    depth = np.ones((4, 6), np.float32)
    for after in (0.06, 0.96):
        bag.add("/depth", START + after, bag.image(depth, "32FC1", START + after))
    frames = list(open_stream(bag.write(tmp_path / "bag")))
    # Too long before the first pose; between two; held after the last; too long after it.
    places = [None if frame.pose is None else round(frame.pose[0, 3], 6) for frame in frames]
    assert places == [None, 3.0, 5.0, None]
    assert [frame.depth is None for frame in frames] == [True, False, True, True]


def test_mount_and_transforms(tmp_path):
    mount = np.eye(4)
    mount[2, 3] = 1.5
    path = kitchen(frames=2).write(tmp_path / "kitchen")
    assert next(open_stream(path, mount=mount)).pose[:3, 3].tolist() == pytest.approx([0.2, 0, 1.5])

    bag = Messages()
    bag.add("/tf_static", START, bag.transforms(START, "base", "camera", (0.0, 0.0, 1.5)))
    for number in range(3):
        seconds = START + number / 10
        bag.add("/image", seconds, bag.image(flat(number), "rgb8", seconds))
        moved = bag.transforms(seconds + 0.04, "map", "base", (float(number), 0.0, 0.0))
        bag.add("/tf", seconds + 0.04, moved)
    frames = list(open_stream(bag.write(tmp_path / "robot")))
    assert [frame.pose[0, 3] for frame in frames] == pytest.approx([0.0, 0.6, 1.6], abs=1e-5)
    assert {frame.pose[2, 3] for frame in frames} == {1.5}
    assert list(open_stream(tmp_path / "robot", world="moon"))[1].pose is None


def test_time_that_jumps_back_begins_anew(tmp_path):
    bag = Messages()
    for recorded, stamp in enumerate((100, 101, 50, 51)):
        bag.add("/image", START + recorded, bag.image(flat(1), "rgb8", stamp))
        bag.add("/pose", START + recorded, bag.pose(stamp, (float(stamp), 0.0, 0.0)))
    stream = open_stream(bag.write(tmp_path / "bag"))
    assert [frame.timestamp for frame in stream] == [100, 101, 50, 51]
    assert stream.stats.late == 0


def test_header_without_time_and_late_frames(tmp_path):
    bag = Messages()
    for recorded, stamp in ((START, 0), (START + 1, START + 1), (START + 2, START + 0.5)):
        bag.add("/image", recorded, bag.image(flat(1), "rgb8", stamp))
    stream = open_stream(bag.write(tmp_path / "bag"))
    assert [frame.timestamp for frame in stream] == [START, START + 1]
    assert stream.stats.late == 1


def test_topics_that_are_missing_or_ambiguous(tmp_path):
    bag = kitchen(frames=2)
    bag.add("/goal", START, bag.pose(START, (9.0, 0.0, 0.0)))
    path = bag.write(tmp_path / "bag")
    stream = open_stream(path)
    assert next(stream).pose is None
    assert stream.stats.problems == [
        "several pose topics, none used; set pose_topic (/goal, /pose)"
    ]
    assert next(open_stream(path, pose_topic="/goal")).pose[0, 3] == 9.0
    with pytest.raises(SourceError, match="choose from .*/front/image, /rear/image"):
        open_stream(path, topic="/nose")
    with pytest.raises(SourceError, match="no pose topic /nose; choose from /goal, /pose"):
        open_stream(path, pose_topic="/nose")


def test_bag_without_pictures(tmp_path):
    bag = Messages()
    bag.add("/pose", START, bag.pose(START, (0.0, 0.0, 0.0)))
    with pytest.raises(SourceError, match="has no image topic; it has /pose"):
        open_stream(bag.write(tmp_path / "bag"))


@pytest.mark.parametrize("kind", ["mcap", "db3", "mcap file", "ros1"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.95])
def test_damaged_bags_are_refused_or_end_early(tmp_path, kind, share):
    path = bag_path(tmp_path, kind)
    data = path if path.is_file() else next(path.glob("*.[md][cb]*"))
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])
    try:
        stream = open_stream(path)
    except SourceError as error:
        assert "\n" not in str(error)
    else:
        list(stream)
        assert stream.stats.problems


def test_pictures_of_unknown_encoding_are_counted(tmp_path):
    bag = Messages()
    for number, encoding in enumerate(("rgb8", "strange", "rgb8")):
        bag.add("/image", START + number, bag.image(flat(1), encoding, START + number))
    stream = open_stream(bag.write(tmp_path / "bag"))
    assert [frame.index for frame in stream] == [0, 2]
    assert stream.stats.dropped == 1 and "'strange'" in stream.stats.problems[0]


RED = np.zeros((4, 6, 3), np.uint8)
RED[..., 0] = 200


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    "encoding, pixels",
    [
        ("rgb8", RED),
        ("bgr8", RED[..., ::-1]),
        ("8UC3", RED[..., ::-1]),
        ("rgba8", np.dstack([RED, RED[..., :1]])),
        ("bgra8", np.dstack([RED[..., ::-1], RED[..., :1]])),
        ("rgb16", RED.astype(np.uint16) << 8),
    ],
)
def test_colour_encodings(encoding, pixels, padding):
    message = Messages().image(pixels, encoding, padding=padding)
    assert np.array_equal(picture_of(message), RED)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 2, 3])
def test_byte_order_and_padding(big, padding):
    gray = (np.arange(24, dtype=np.uint16).reshape(4, 6) << 8).astype(">u2" if big else "<u2")
    message = Messages().image(gray, "mono16", padding=padding, big=big)
    assert np.array_equal(picture_of(message)[..., 0], np.arange(24).reshape(4, 6))
    depth = np.arange(24, dtype=">f4" if big else "<f4").reshape(4, 6)
    message = Messages().image(depth, "32FC1", padding=padding, big=big)
    assert np.array_equal(depth_of(message), depth.astype(np.float32))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer(pattern, bits):
    colours = {"r": 200, "g": 100, "b": 20}
    tile = np.array([colours[letter] for letter in pattern]).reshape(2, 2)
    mosaic = np.tile(tile, (6, 6)).astype(np.uint8)
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) << 8
    image = picture_of(Messages().image(mosaic, f"bayer_{pattern}{bits}"))
    assert image[5, 5].tolist() == [200, 100, 20]


@pytest.mark.parametrize("encoding, order", [("yuv422", "uyvy"), ("yuv422_yuy2", "yuyv")])
def test_yuv(encoding, order):
    u, y, v = (int(x) for x in cv2.cvtColor(RED, cv2.COLOR_RGB2YUV)[0, 0][[1, 0, 2]])
    values = {"u": u, "v": v, "y": round(16 + y * 219 / 255)}
    letters = list(order)
    first = {"u": values["u"], "v": values["v"], "y": values["y"]}
    quad = [first[letter] for letter in letters]
    pixels = np.tile(np.array(quad, np.uint8).reshape(1, 2, 2), (4, 3, 1))
    image = picture_of(Messages().image(pixels, encoding)).astype(int)
    assert image[0, 0, 0] > 150 and image[0, 0, 1:].max() < 60


def test_depth_knows_no_infinity():
    depth = np.array([[1.5, np.nan], [np.inf, 0]], np.float32)
    assert depth_of(Messages().image(depth, "32FC1")).tolist() == [[1.5, 0], [0, 0]]


def test_short_data_is_refused():
    message = Messages().image(RED, "rgb8")
    message.data = message.data[:-1]
    with pytest.raises(ValueError, match="71 bytes are no 6x4 picture"):
        picture_of(message)


def test_pose_matrix():
    half = 2**-0.5
    pose = pose_of(Messages().pose(0, (1.0, 2.0, 3.0), (0.0, 0.0, 2 * half, 2 * half)))
    expected = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    assert np.allclose(pose, expected)
    with pytest.raises(ValueError, match="no rotation"):
        pose_of(Messages().pose(0, (1.0, 2.0, 3.0), (0.0, 0.0, 0.0, 0.0)))


def test_closing_early_closes_the_bag(tmp_path):
    stream = open_stream(bag_path(tmp_path, "mcap"))
    next(stream)
    stream.close()
    assert stream._reader.stack is None
