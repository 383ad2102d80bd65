"""Messages of ROS 1 or ROS 2, and bags of them, without ROS."""

from __future__ import annotations

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_HUMBLE)
START = 1_700_000_000


class Messages:
    """Makes messages of ROS 1 or ROS 2 and writes them as a bag."""

    def __init__(self, store=ROS2):
        self.store, self.rows = store, []

    def make(self, kind, **fields):
        return self.store.types[kind](**fields)

    def header(self, seconds):
        nanoseconds = round(seconds * 1e9)
        stamp = self.make(
            "builtin_interfaces/msg/Time",
            sec=nanoseconds // 10**9,
            nanosec=nanoseconds % 10**9,
        )
        extra = {"seq": 0} if self.store is ROS1 else {}
        return self.make("std_msgs/msg/Header", stamp=stamp, frame_id="camera", **extra)

    def image(self, pixels, encoding, seconds=0.0, padding=0, big=False):
        height, width = pixels.shape[:2]
        rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
        rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
        return self.make(
            "sensor_msgs/msg/Image",
            header=self.header(seconds),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=int(big),
            step=rows.shape[1],
            data=rows.reshape(-1),
        )

    def compressed(self, pixels, seconds):
        data = cv2.imencode(".png", pixels[..., ::-1])[1].reshape(-1)
        return self.make(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(seconds),
            format="png",
            data=data,
        )

    def pose(self, seconds, position, quaternion=(0.0, 0.0, 0.0, 1.0)):
        pose = self.make(
            "geometry_msgs/msg/Pose",
            position=self.make(
                "geometry_msgs/msg/Point", **dict(zip("xyz", position, strict=True))
            ),
            orientation=self.make(
                "geometry_msgs/msg/Quaternion", **dict(zip("xyzw", quaternion, strict=True))
            ),
        )
        return self.make("geometry_msgs/msg/PoseStamped", header=self.header(seconds), pose=pose)

    def transforms(self, seconds, parent, child, position):
        vector = self.make("geometry_msgs/msg/Vector3", **dict(zip("xyz", position, strict=True)))
        turn = self.make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
        step = self.make("geometry_msgs/msg/Transform", translation=vector, rotation=turn)
        header = self.header(seconds)
        header.frame_id = parent
        one = self.make(
            "geometry_msgs/msg/TransformStamped",
            header=header,
            child_frame_id=child,
            transform=step,
        )
        return self.make("tf2_msgs/msg/TFMessage", transforms=[one])

    def info(self, seconds, focal):
        matrix = np.array([focal, 0, 3, 0, focal, 2, 0, 0, 1], np.float64)
        names = "dkrp" if self.store is ROS2 else "DKRP"
        values = np.zeros(5), matrix, np.eye(3).reshape(-1), np.zeros(12)
        region = self.make(
            "sensor_msgs/msg/RegionOfInterest",
            x_offset=0,
            y_offset=0,
            height=0,
            width=0,
            do_rectify=False,
        )
        return self.make(
            "sensor_msgs/msg/CameraInfo",
            header=self.header(seconds),
            height=4,
            width=6,
            distortion_model="plumb_bob",
            binning_x=0,
            binning_y=0,
            roi=region,
            **dict(zip(names, values, strict=True)),
        )

    def add(self, topic, seconds, message):
        self.rows.append((seconds, topic, message))

    def write(self, path, storage=StoragePlugin.MCAP):
        if self.store is ROS1:
            writer, serialize = Writer1(path), ROS1.serialize_ros1
        else:
            writer = Writer2(path, version=9, storage_plugin=storage)
            serialize = ROS2.serialize_cdr
        links = {}
        with writer:
            for seconds, topic, message in sorted(self.rows, key=lambda row: row[0]):
                kind = message.__msgtype__
                if topic not in links:
                    links[topic] = writer.add_connection(topic, kind, typestore=self.store)
                writer.write(links[topic], round(seconds * 1e9), serialize(message, kind))
        return path
