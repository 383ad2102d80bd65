"""What the ROS 2 node takes and how fast it answers: raw pictures at 30 Hz, over real DDS.

Run by a Python that has rclpy and vismem_msgs (scripts/ros_env.sh makes one):

    ros/bin/python benchmarks/ros_node.py            # a minute each; --seconds 10 for a quick look

Everything runs on this machine, cameras and nodes in processes of their own. Received, late and
dropped are the node's own counts; latency is from the stamp of a picture to the arrival of its
detections in another process; CPU is the node's, one core being 100 %.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
PROFILE = HERE.parents[1] / "apps/ros2/vismem_ros/config/fastdds_shm.xml"
CLIP = HERE.parents[1] / "data/gallery.mp4"
RATE = 30.0


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return 1000 * ordered[round(share * (len(ordered) - 1))] if ordered else float("nan")


def camera(topic: str, seconds: float) -> None:
    """Publish a clip's pictures, raw, at 30 Hz; prints how many."""
    import cv2
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)
    video, messages = cv2.VideoCapture(str(CLIP)), []
    while len(messages) < 60:
        for _ in range(6):
            video.grab()
        picture = cv2.resize(video.retrieve()[1], (640, 480))
        fields = {"height": 480, "width": 640, "encoding": "bgr8", "step": 1920}
        messages.append(Image(**fields, data=picture.tobytes()))
    while not publisher.get_subscription_count():
        time.sleep(0.05)
    time.sleep(2.0)  # the other side discovers on its own
    began, count = time.monotonic(), round(seconds * RATE)
    behind = 0
    for number in range(count):
        wait = began + number / RATE - time.monotonic()
        behind += wait < -1 / RATE
        time.sleep(max(0.0, wait))
        message = messages[number % 60]
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
    print(count, behind)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_node(side: str, folder: Path, env: dict[str, str]) -> subprocess.Popen:
    """A node that remembers at 2 and detects at 5 pictures a second, as it does by default."""
    words = ["-r", f"__ns:=/{side}", "-r", "image:=image", "-p", f"path:={folder}/{side}.mem"]
    words += ["-p", "image_transport:=raw"]
    command = [sys.executable, "-m", "vismem.cli", "ros", "node", "--ros-args", *words]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)


def measure(sides: list[str], seconds: float) -> list[dict[str, float]]:
    """One run; a row a node."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from vismem_msgs.msg import DetectionArray
    from vismem_msgs.srv import Query

    rclpy.init()
    peer = rclpy.create_node("watcher")
    status: dict[str, dict[str, str]] = {}
    delays: dict[str, list[float]] = {side: [] for side in sides}
    trips: dict[str, list[float]] = {side: [] for side in sides}

    def hear(array: DiagnosticArray) -> None:
        for one in array.status:
            status[one.name.split("/")[1]] = {value.key: value.value for value in one.values}

    def spin(until: float) -> None:
        while time.monotonic() < until:
            rclpy.spin_once(peer, timeout_sec=0.005)

    def note(side: str, message: DetectionArray) -> None:
        stamp = message.header.stamp
        now = peer.get_clock().now().nanoseconds / 1e9
        delays[side].append(now - stamp.sec - stamp.nanosec / 1e9)

    peer.create_subscription(DiagnosticArray, "/diagnostics", hear, 50)
    clients = {side: peer.create_client(Query, f"/{side}/vismem/query") for side in sides}
    for side in sides:
        peer.create_subscription(
            DetectionArray, f"/{side}/vismem/detections", lambda m, s=side: note(s, m), 50
        )
    with tempfile.TemporaryDirectory() as name:
        folder, env = Path(name), dict(os.environ)
        nodes = {side: start_node(side, folder, env) for side in sides}
        while not all(client.service_is_ready() for client in clients.values()):
            spin(time.monotonic() + 0.2)
        spin(time.monotonic() + 3.0)
        cameras = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(HERE),
                    "--camera",
                    f"/{side}/image",
                    "--seconds",
                    str(seconds),
                ],
                env=env,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side in sides
        ]
        while not all("received" in status.get(side, {}) for side in sides):
            spin(time.monotonic() + 0.05)
        began = time.monotonic()
        before = {side: cpu_seconds(node.pid) for side, node in nodes.items()}
        while any(process.poll() is None for process in cameras):
            for side, client in clients.items():
                asked = time.perf_counter()
                future = client.call_async(Query.Request(question="when does the cat appear?"))
                while not future.done() and time.perf_counter() - asked < 10:
                    rclpy.spin_once(peer, timeout_sec=0.002)
                trips[side].append(time.perf_counter() - asked)
            spin(time.monotonic() + 0.5)
        elapsed = time.monotonic() - began
        cpu = {side: cpu_seconds(node.pid) - before[side] for side, node in nodes.items()}
        spin(time.monotonic() + 2.5)  # the newest diagnostics
        rows = []
        for side, process in zip(sides, cameras, strict=True):
            sent, behind = map(int, process.stdout.read().split())
            told = status[side]
            counts = {key: int(told.get(key, 0)) for key in ("received", "dropped", "late")}
            rows.append(
                {"sent": sent, "behind": behind, **counts}
                | {"remembered": int(told.get("frames", 0)), "detected": len(delays[side])}
                | {"cpu": 100 * cpu[side] / elapsed}
                | {"detect 50": percentile(delays[side], 0.5)}
                | {"detect 99": percentile(delays[side], 0.99)}
                | {"query 50": percentile(trips[side], 0.5)}
                | {"query 99": percentile(trips[side], 0.99)}
            )
        for node in nodes.values():
            node.send_signal(signal.SIGINT)
        for node in nodes.values():
            node.wait(30)
    peer.destroy_node()
    rclpy.shutdown()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--camera", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.camera:
        camera(given.camera, given.seconds)
        return
    if given.run:
        for row in measure(given.run.split(","), given.seconds):
            cells = [f"{value:.0f}" for value in row.values()]
            print(f"| {' | '.join(cells)} |", flush=True)
        return
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("FASTDDS_DEFAULT_PROFILES_FILE", None)
    print(f"640x480 raw at {RATE:.0f} Hz for {given.seconds:.0f} s; load {os.getloadavg()[0]:.1f}")
    print(
        "| | sent | sent late | received | dropped | late | remembered | detected | CPU % "
        "| detection p50 ms | p99 ms | query p50 ms | p99 ms |"
    )
    print("|---|" + "--:|" * 12)
    for name, sides, profile in (
        ("one node, Fast DDS as it comes", "front", False),
        ("one node, shared memory", "front", True),
        ("two nodes, shared memory", "front,rear", True),
    ):
        env = os.environ | {"ROS_DOMAIN_ID": str(random.SystemRandom().randint(1, 100))}
        if profile:
            env["FASTDDS_DEFAULT_PROFILES_FILE"] = str(PROFILE)
        # A process of its own: DDS reads the profile once.
        command = [sys.executable, str(HERE), "--run", sides, "--seconds", str(given.seconds)]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            print(f"| {name} {line}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
