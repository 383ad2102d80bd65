"""A robot's view: a camera goes around a table, a thing is hidden, and the ROS 2 node is asked.

Each scene is drawn by MuJoCo and recorded as a bag (`vismem.ros.record_bag`); `vismem ros replay`
plays it to a node that knows nothing but its topics. Asked where the thing was, the node answers a
service and publishes the place and a goal before it; both are compared with the truth.

    MUJOCO_GL=osmesa ~/ros/bin/python benchmarks/ros_robot.py --picture docs/ros.png
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 100)),
    "OMP_NUM_THREADS": "1",
    "FASTDDS_DEFAULT_PROFILES_FILE": str(
        Path(__file__).resolve().parents[1] / "apps/ros2/vismem_ros/config/fastdds_shm.xml"
    ),
}

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import rclpy  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from locate import Episode, begin, called  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from vismem_msgs.srv import Query  # noqa: E402

from vismem.ros.record import record_bag  # noqa: E402

COVERED = 6  # pictures after everything was covered
START = 1_700_000_000.0  # a robot's clock
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def ask_node(folder: Path, episode: Episode, name: str) -> dict[str, Any]:
    """Record, replay and ask; what the node said."""
    bag = folder / "robot"
    with record_bag(bag) as write:
        for frame in episode.frames:
            write(replace(frame, timestamp=START + frame.timestamp))
    words = ["-r", "image:=/camera/image", "-r", "depth:=/camera/depth", "-r", "pose:=/pose"]
    for setting in ("image_transport:=raw", "depth:=true", "pose_source:=pose", "fps:=0.0"):
        words += ["-p", setting]
    words += ["-p", "every_frame:=true", "-p", "detect:=none", "-p", f"path:={folder}/robot.mem"]
    vismem = [sys.executable, "-m", "vismem.cli", "ros"]
    process = subprocess.Popen([*vismem, "node", "--ros-args", *words])
    peer = rclpy.create_node("robot")
    told: dict[str, Any] = {}
    for topic in ("recall_pose", "goal_pose"):
        peer.create_subscription(
            PoseStamped, f"/vismem/{topic}", lambda m, t=topic: told.update({t: m}), LATCHED
        )
    try:
        replayed = [*vismem, "replay", str(bag), "--lockstep", "/vismem"]
        subprocess.run(replayed, check=True, stdout=subprocess.DEVNULL)
        client = peer.create_client(Query, "/vismem/query")
        while "reply" not in told:
            if not client.wait_for_service(60):
                raise RuntimeError("the node does not answer")
            future = client.call_async(Query.Request(question=f"where was the {name}?"))
            rclpy.spin_until_future_complete(peer, future, timeout_sec=5)
            if future.done():
                told["reply"] = future.result()
        for _ in range(50):
            if "goal_pose" in told or not told["reply"].objects:
                break
            rclpy.spin_once(peer, timeout_sec=0.1)
    finally:
        peer.destroy_node()
        process.send_signal(signal.SIGINT)
        process.wait(60)
    return told


def xyz(pose: Any) -> np.ndarray:
    return np.array([pose.position.x, pose.position.y, pose.position.z])


def draw(path: Path, episode: Episode, name: str, truth: Any, told: dict[str, Any]) -> None:
    """Before and after, and a map from above."""
    size, scale = 360, 240.0  # pixels of a panel, and a metre
    seen, covered = episode.frames[0].image, episode.frames[-1].image
    panels = [cv2.resize(image, (480, size)) for image in (seen, covered)]
    area = np.full((size, 480, 3), 250, np.uint8)

    def at(point: Any) -> tuple[int, int]:
        return round(240 + scale * point[0]), round(150 - scale * point[1])

    cv2.rectangle(area, at((-0.4, 0.3)), at((0.4, -0.3)), (225, 215, 200), -1)
    for frame in episode.frames:
        cv2.circle(area, at(frame.pose[:3, 3]), 3, (150, 150, 150), -1, cv2.LINE_AA)
    for thing, place in episode.table.truth().items():
        cv2.circle(area, at(place), 6, (190, 190, 190), 1, cv2.LINE_AA)
        if thing == name:
            cv2.circle(area, at(place), 9, (30, 120, 30), 2, cv2.LINE_AA)
    found, goal = told["recall_pose"].pose, told["goal_pose"].pose
    cv2.drawMarker(area, at(xyz(found)), (200, 30, 30), cv2.MARKER_CROSS, 14, 2, cv2.LINE_AA)
    ahead = 2 * math.atan2(goal.orientation.z, goal.orientation.w)
    stand = xyz(goal)
    tip = stand + 0.15 * np.array([math.cos(ahead), math.sin(ahead), 0])
    cv2.arrowedLine(area, at(stand), at(tip), (30, 60, 200), 3, cv2.LINE_AA, tipLength=0.4)
    text = told["reply"].answer
    lines = [f"where was the {name}?", text[: text.find(" (")]]
    error = 100 * np.linalg.norm(xyz(found) - truth)
    notes = ("seen", "then everything is covered", f"{error:.1f} cm from the truth (green)")
    page = np.full((size + 70, 3 * 480, 3), 255, np.uint8)
    for place, (panel, note) in enumerate(zip([*panels, area], notes, strict=True)):
        page[:size, place * 480 : place * 480 + 478] = panel[:, :478]
        spot = (place * 480 + 8, size + 20)
        cv2.putText(page, note, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (60, 60, 60), 1, cv2.LINE_AA)
    told_line = f"{lines[0]}  {lines[1]}   cross: recall_pose, arrow: goal_pose, dots: the camera"
    spot = (8, size + 52)
    cv2.putText(page, told_line, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(str(path), page[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=5)
    parser.add_argument("--picture", type=Path, help="draw the first scene to this file")
    given = parser.parse_args()
    rclpy.init()
    near = 0
    print("| scene | thing | answered m | error cm | goal: from the thing m, turned off it ° |")
    print("|--:|---|---|--:|---|")
    for seed in range(given.scenes):
        episode = begin(seed)
        thing = episode.things[0]
        truth = np.array(episode.table.truth()[thing.name])
        episode.cover()
        episode.look(COVERED)
        with tempfile.TemporaryDirectory() as folder:
            told = ask_node(Path(folder), episode, called(thing))
        if not told["reply"].objects:
            print(f"| {seed} | {called(thing)} | abstained | | |")
            continue
        place, goal = xyz(told["recall_pose"].pose), told["goal_pose"].pose
        assert told["recall_pose"].header.frame_id == "map"
        error = float(np.linalg.norm(place - truth))
        near += error <= 0.05
        way = (place - xyz(goal))[:2]
        ahead = 2 * math.atan2(goal.orientation.z, goal.orientation.w)
        off = math.degrees(math.remainder(math.atan2(way[1], way[0]) - ahead, math.tau))
        where = " ".join(f"{x:.3f}" for x in place)
        far = float(np.linalg.norm(way))
        print(f"| {seed} | {called(thing)} | {where} | {100 * error:.1f} | {far:.2f}, {off:.1f} |")
        if given.picture and seed == 0:
            draw(given.picture, episode, called(thing), truth, told)
    print(f"{near} of {given.scenes} within 5 cm")
    rclpy.shutdown()


if __name__ == "__main__":
    main()
