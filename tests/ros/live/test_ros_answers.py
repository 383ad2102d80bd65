import signal
import time

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vismem_msgs.action import Ask
from vismem_msgs.srv import Forget, Load, Query, Save

CAT = "when does the cat appear?"


def feed(peer, frames, numbers, settled=None, start=100.0):
    """Publish pictures half a second apart by their stamps, and wait until they are remembered."""
    heard = peer.collect(Header, "/vismem/settled", 1000)
    images = peer.publisher(Image, "image")
    time.sleep(0.5)  # the way back of what is settled is discovered on its own
    for number in numbers:
        images.publish(peer.raw(frames[number % len(frames)], start + number / 2))
        peer.spin(0.03)
    peer.until(lambda: len(heard) >= len(numbers), "all settled")
    return heard


def test_questions_and_changes(peer, start, frames, tmp_path):
    start(path=tmp_path / "a.mem", fps=0.0, detect="none", every_frame=True)
    peer.ready()
    shown = peer.collect(PoseStamped, "/vismem/recall_pose")
    heard = feed(peer, frames, range(16))
    assert [header.stamp.sec for header in heard] == [100 + n // 2 for n in range(16)]

    # Query: the evidence comes as messages; what is wrong is told.
    answer = peer.call(Query, "/vismem/query", question=CAT)
    assert answer.success and not answer.abstained and "Cat" in answer.answer
    assert answer.moments[0].score > 0.5 and 100 <= answer.moments[0].start.sec <= 104
    assert len(answer.moments[0].box) == 4 and not answer.moments[0].has_pose
    assert peer.call(Query, "/vismem/query", question="an elephant").abstained
    wrong = peer.call(Query, "/vismem/query", question=" ")
    assert not wrong.success and wrong.reason
    wrong = peer.call(Query, "/vismem/query", question=CAT, threshold=7.0)
    assert not wrong.success and "from 0 to 1" in wrong.reason
    assert not shown  # no pose is known

    # Ask: feedback on the way, the same answer in the end.
    client = ActionClient(peer.node, Ask, "/vismem/ask")
    peer.until(client.server_is_ready, "no action")
    said = []
    goal = client.send_goal_async(
        Ask.Goal(question=CAT), feedback_callback=lambda m: said.append(m.feedback)
    )
    peer.until(goal.done, "goal not taken")
    result = goal.result().get_result_async()
    peer.until(result.done, "no result")
    assert result.result().status == GoalStatus.STATUS_SUCCEEDED
    peer.until(lambda: [f.stage for f in said].count("evidence") == len(answer.moments), "evidence")
    assert said[0].stage in ("waiting", "looking")
    assert said[-1].moment == answer.moments[-1]
    assert result.result().result.answer == answer.answer

    # Save a copy, forget, load the copy; never outside the folder.
    saved = peer.call(Save, "/vismem/save", name="copy.mem")
    assert saved.success and (tmp_path / "copy.mem/manifest.json").exists() and saved.bytes > 0
    for name in ("../b.mem", "/tmp/b.mem", "..", ""):
        assert not peer.call(Load, "/vismem/load", name=name).success
    assert not peer.call(Save, "/vismem/save", name="a/b").success
    gone = peer.call(Forget, "/vismem/forget")
    assert gone.success and gone.forgotten > 0
    assert peer.call(Query, "/vismem/query", question=CAT).abstained
    back = peer.call(Load, "/vismem/load", name="copy.mem")
    assert back.success and back.frames == 16
    assert not peer.call(Query, "/vismem/query", question=CAT).abstained
    assert peer.call(Trigger, "/vismem/reset").success
    assert peer.call(Query, "/vismem/query", question=CAT).abstained


def test_slow_questions_hold_up_no_camera(peer, start, frames):
    start(fps=0.0, detect="none", queue=50)
    peer.ready()
    images = peer.publisher(Image, "image", 50)
    received = peer.arrive(images, peer.raw(frames[0]))
    peer.call(Query, "/vismem/query", question=CAT, again=5.0)
    client = peer.node.create_client(Query, "/vismem/query")
    peer.until(client.service_is_ready)
    time.sleep(0.5)  # the way back is discovered on its own
    futures = []
    for number in range(40):
        images.publish(peer.raw(frames[number]))
        if number % 5 == 0:  # eight at once, twice as many as are answered at once
            futures.append(client.call_async(Query.Request(question=CAT)))
        peer.spin(0.01)
    peer.until(lambda: all(future.done() for future in futures), "questions unanswered")
    peer.until(lambda: peer.health("/vismem", "received") == received + 40, "pictures held up")
    replies = [future.result() for future in futures]
    assert any(reply.success for reply in replies)
    assert all(reply.success or "ask again" in reply.reason for reply in replies)


def test_kill_and_restart(peer, start, frames, tmp_path):
    given = {"path": tmp_path / "a.mem", "fps": 0.0, "detect": "none", "every_frame": True}
    node = start(**given)
    heard = feed(peer, frames, range(12))
    images = peer.publisher(Image, "image")
    images.publish(peer.raw(frames[12], 200.0))  # on its way
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    acknowledged = len(heard)
    assert acknowledged >= 12

    peer.status.clear()
    start(**given)
    peer.until(lambda: peer.health("/vismem", "frames") >= acknowledged, "the memory is back")
    answer = peer.call(Query, "/vismem/query", question=CAT, again=5.0)
    assert not answer.abstained and 100 <= answer.moments[0].start.sec <= 104
    # It goes on: the next frame is later.
    peer.until(images.get_subscription_count, "not subscribed again")
    before = peer.health("/vismem", "frames")
    images.publish(peer.raw(frames[0], 300.0))
    peer.until(lambda: peer.health("/vismem", "frames") == before + 1, "one more frame")
