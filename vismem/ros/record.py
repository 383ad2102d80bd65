"""`record_bag`: writes frames to a ROS 2 bag that a robot could have recorded; needs no ROS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vismem.errors import StoreError
from vismem.frame import Frame
from vismem.ros.convert import Messages

__all__ = ["record_bag"]

CAMERA = "camera_optical_frame"


@contextlib.contextmanager
def record_bag(path: Path, *, camera: str = "/camera", world: str = "map") -> Iterator[Callable]:
    """Open a bag to write frames to.

    Pictures go to ``<camera>/image``, and what a frame has besides to ``<camera>/camera_info``,
    ``<camera>/depth`` (32FC1) and ``/pose`` (of the camera's optical frame).

    Args:
        path: Folder to make.
        camera: Namespace of the camera's topics.
        world: Frame of reference of poses.

    Yields:
        What takes a `Frame`.

    Raises:
        StoreError: If there is something at ``path`` already.

    Example:
        >>> import tempfile
        >>> from vismem import open_stream
        >>> bag = Path(tempfile.mkdtemp()) / "bag"
        >>> with record_bag(bag) as write:
        ...     write(Frame(np.zeros((4, 6, 3), np.uint8), timestamp=2.5, pose=np.eye(4)))
        >>> next(open_stream(bag)).timestamp
        2.5
    """
    if path.exists():
        raise StoreError(f"there is something at {path} already; choose another place")
    store = get_typestore(Stores.LATEST)
    messages = Messages(store.types.__getitem__, world, vision=False)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        links: dict[str, Any] = {}

        def write(frame: Frame) -> None:
            for topic, message in _parts(messages, frame, camera):
                kind = message.__msgtype__
                if topic not in links:
                    links[topic] = writer.add_connection(topic, kind, typestore=store)
                nanoseconds = round(frame.timestamp * 1e9)
                writer.write(links[topic], nanoseconds, store.serialize_cdr(message, kind))

        yield write


def _parts(messages: Messages, frame: Frame, camera: str) -> Iterator[tuple[str, Any]]:
    """Topic and message of everything that a frame has."""
    header = messages.header(frame.timestamp, CAMERA)

    def image(pixels: np.ndarray, encoding: str) -> Any:
        return messages.make(
            "sensor_msgs/Image",
            header=header,
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels.strides[0],
            data=pixels.view(np.uint8).reshape(-1),
        )

    if frame.pose is not None:
        yield "/pose", messages.pose_stamped(frame.timestamp, frame.pose)
    if frame.intrinsics is not None:
        region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        projection = np.zeros((3, 4))
        projection[:, :3] = frame.intrinsics
        info = messages.make(
            "sensor_msgs/CameraInfo",
            header=header,
            height=frame.height,
            width=frame.width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=np.asarray(frame.intrinsics, np.float64).reshape(-1),
            r=np.eye(3).reshape(-1),
            p=projection.reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=messages.make("sensor_msgs/RegionOfInterest", **region),
        )
        yield f"{camera}/camera_info", info
    if frame.depth is not None:
        yield f"{camera}/depth", image(np.ascontiguousarray(frame.depth, np.float32), "32FC1")
    yield f"{camera}/image", image(np.ascontiguousarray(frame.image), "rgb8")
