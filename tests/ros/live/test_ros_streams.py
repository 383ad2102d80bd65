import numpy as np
import pytest
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import SetBool
from vismem_msgs.msg import DetectionArray
from vismem_msgs.srv import Query

from vismem.ros.health import ERROR, WARN

COUNT = 150  # five seconds


@pytest.mark.parametrize("transport", ["raw", "compressed"])
def test_no_picture_is_lost(peer, start, frames, transport):
    start(image_transport=transport, image_reliability="best_effort", detect_rate=1.0)
    boxes = peer.collect(DetectionArray, "/vismem/detections")
    kind, topic = (Image, "image") if transport == "raw" else (CompressedImage, "image/compressed")
    make = peer.raw if transport == "raw" else peer.jpeg
    images = peer.publisher(kind, topic, 30)
    received = peer.arrive(images, make(frames[0]))
    peer.send(images, (make(frames[n % 30]) for n in range(COUNT)))
    peer.until(lambda: peer.health("/vismem", "received") >= received + COUNT, "all received", 15)
    assert peer.health("/vismem", "received") == received + COUNT
    assert peer.health("/vismem", "dropped") == 0
    # Two a second are remembered; detections carry the picture's own header.
    peer.until(lambda: peer.health("/vismem", "frames") >= 10, "ten remembered", 10)
    assert peer.health("/vismem", "remembered") < COUNT / 5
    assert peer.until(lambda: len(boxes) >= 4 and boxes[-1])
    assert boxes[-1].header.frame_id == "camera_optical_frame"


def test_what_is_paused_broken_or_silent_is_told(peer, start, frames):
    start(fps=0.0, detect="none", min_rate=1.0)
    images = peer.publisher(Image, "image")
    peer.send(images, [peer.raw(frames[0])])
    peer.until(lambda: peer.health("/vismem", "frames") == 1, "one frame")
    assert peer.call(SetBool, "/vismem/pause", data=True).success
    peer.send(images, [peer.raw(frames[0])] * 3)
    peer.until(lambda: peer.health("/vismem", "paused") == 3, "three left out")
    assert peer.health("/vismem", "frames") == 1
    assert peer.call(SetBool, "/vismem/pause", data=False).success
    broken = peer.raw(frames[0])
    broken.encoding = "smell"
    peer.send(images, [broken])
    peer.until(lambda: peer.health("/vismem", "undecodable") == 1, "a broken picture")
    assert ERROR > WARN
    levels = lambda: peer.status["/vismem: memory"]  # noqa: E731
    peer.until(lambda: "pictures a second" in levels().message, "silence is told", 15)
    assert levels().level == bytes([WARN])
    old = peer.raw(frames[0], stamp=5.0)  # of 1970
    peer.send(images, [old])
    peer.until(lambda: peer.health("/vismem", "late") == 1, "a stamp of long ago")


def test_time_that_is_set_back(peer, start, frames):
    start(use_sim_time=True, fps=0.0, detect="none")
    clock = peer.publisher(Clock, "/clock")
    images = peer.publisher(Image, "image")

    def tick(second: float) -> None:
        message = Clock()
        message.clock.sec, message.clock.nanosec = int(second), int(second % 1 * 1e9)
        clock.publish(message)
        for _ in range(20):
            peer.spin(0.005)
        images.publish(peer.raw(frames[0], second))

    for second in (100.0, 100.5, 101.0):
        tick(second)
    peer.until(lambda: peer.health("/vismem", "frames") == 3, "three frames")
    assert peer.health("/vismem", "jumps") == 0 and peer.health("/vismem", "late") == 0
    for second in (20.0, 20.5, 21.0):
        tick(second)
    peer.until(lambda: peer.health("/vismem", "frames") == 6, "six frames")
    assert peer.health("/vismem", "jumps") >= 1
    # The memory's own time was carried on, not set back.
    answer = peer.call(Query, "/vismem/query", question="when does the cat appear?")
    assert answer.moments and 100 <= answer.moments[0].start.sec <= 103, answer


def test_two_cameras(peer, start, frames):
    for side in ("front", "rear"):
        start(f"__ns:=/{side}", "image:=camera/image_raw", name="vismem", fps=0.0, detect="none")
    front = peer.publisher(Image, "/front/camera/image_raw")
    rear = peer.publisher(Image, "/rear/camera/image_raw")
    gray = np.full((480, 640, 3), 128, np.uint8)
    for number in range(5):
        peer.send(front, [peer.raw(frames[number])], 10)
        peer.send(rear, [peer.raw(gray)], 10)
    for side in ("front", "rear"):
        peer.until(lambda s=side: peer.health(f"/{s}/vismem", "frames") == 5, side)
    ask = "when does the cat appear?"
    assert not peer.call(Query, "/front/vismem/query", question=ask).abstained
    assert peer.call(Query, "/rear/vismem/query", question=ask).abstained
