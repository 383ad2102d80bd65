"""The services and the action of the memory node; built on ``vismem_msgs``."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from std_srvs.srv import SetBool, Trigger
from vismem_msgs.action import Ask
from vismem_msgs.srv import Forget, Load, Query, Save

from vismem.errors import UsageError, VismemError
from vismem.heads.answer import Answer
from vismem.pipeline import VisualMemory
from vismem.ros.convert import camera_at, goal_before
from vismem.streams.messages import seconds_of

if TYPE_CHECKING:
    from vismem.ros.node import MemoryNode

__all__ = ["MOST_ASKS", "Services"]

MOST_ASKS = 4  # questions at once, each of which takes one thread of the executor
NOTICE = 0.1  # seconds between looks at whether a question was cancelled


class Services:
    """What is asked of a node from the moment it is configured.

    Args:
        node: Whose.
    """

    def __init__(self, node: MemoryNode):
        self._node = node
        self._asking = threading.Semaphore(MOST_ASKS)
        self._changing = threading.Lock()  # one load, reset or save at a time
        self._place = Path(node.value("path"))
        made = {
            "query": (Query, self._query),
            "forget": (Forget, self._forget),
            "save": (Save, self._save),
            "load": (Load, self._load),
            "reset": (Trigger, self._reset),
            "pause": (SetBool, self._pause),
        }
        self._services = [
            node.create_service(
                kind, f"~/{name}", self._guarded(handler), callback_group=node.questions
            )
            for name, (kind, handler) in made.items()
        ]
        self._action = ActionServer(
            node,
            Ask,
            "~/ask",
            self._ask,
            goal_callback=self._accept,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
            callback_group=node.questions,
        )

    def destroy(self) -> None:
        """Answer no more."""
        self._action.destroy()
        for service in self._services:
            self._node.destroy_service(service)

    def _guarded(self, handler: Callable[[Any, Any], None]) -> Callable[[Any, Any], Any]:
        """Tell a caller what is wrong, instead of leaving it without an answer."""

        def handle(request: Any, response: Any) -> Any:
            try:
                response.success = True
                handler(request, response)
            except (VismemError, ValueError, OSError) as error:
                response.success = False
                if hasattr(response, "reason"):
                    response.reason = str(error)
                else:
                    response.message = str(error)
            return response

        return handle

    @property
    def _memory(self) -> VisualMemory:
        if self._node.memory is None:
            raise UsageError("the node holds no memory; configure it")
        return self._node.memory

    # ------------------------------------------------------------------ questions

    def _threshold(self, given: float) -> float:
        if not 0 <= given <= 1:
            raise ValueError(f"a threshold is from 0 to 1, not {given:g}")
        return given or float(self._node.value("threshold"))

    def _query(self, request: Any, response: Any) -> None:
        if not self._asking.acquire(blocking=False):
            raise UsageError(f"{MOST_ASKS} questions are being answered; ask again")
        try:
            threshold = self._threshold(request.threshold)
            answer = self._memory.ask(request.question, wait=False, threshold=threshold)
            self._node.messages.fill(response, answer, request.most)
            self._show(answer)
        finally:
            self._asking.release()

    def _accept(self, goal: Any) -> GoalResponse:
        free = self._node.memory is not None and self._asking.acquire(blocking=False)
        return GoalResponse.ACCEPT if free else GoalResponse.REJECT

    def _ask(self, goal: Any) -> Any:
        """Wait for frames handed over before, then answer; feedback on the way."""
        result, feedback = Ask.Result(), Ask.Feedback()
        try:
            memory, question = self._memory, goal.request.question
            threshold = self._threshold(goal.request.threshold)
            # As many as wait now: a camera that goes on writing does not hold up the answer.
            goal_count = memory.stats.written + memory.stats.late + memory.counts()["waiting"]
            while (left := goal_count - memory.stats.written - memory.stats.late) > 0:
                if not memory.counts()["waiting"]:
                    break
                feedback.stage, feedback.waiting = "waiting", left
                goal.publish_feedback(feedback)
                if goal.is_cancel_requested:
                    return self._cancelled(goal, result)
                time.sleep(NOTICE)
            feedback.stage, feedback.waiting = "looking", 0
            goal.publish_feedback(feedback)
            answer = memory.ask(question, wait=False, threshold=threshold)
            for moment in answer.moments:
                if goal.is_cancel_requested:
                    return self._cancelled(goal, result)
                feedback.stage, feedback.moment = "evidence", self._node.messages.moment(moment)
                goal.publish_feedback(feedback)
            self._node.messages.fill(result, answer)
            self._show(answer)
            goal.succeed()
        except (VismemError, ValueError) as error:
            result.success, result.reason = False, str(error)
            goal.abort()
        finally:
            self._asking.release()
        return result

    def _cancelled(self, goal: Any, result: Any) -> Any:
        result.reason = "cancelled"
        goal.canceled()
        return result

    def _show(self, answer: Answer) -> None:
        """Publish where the best of an answer is, and where to go to see it."""
        node = self._node
        node.health.count("asked")
        if answer.abstained or not node.recall_pose.is_activated:
            return
        stamped = node.messages.pose_stamped
        if answer.places:
            best = answer.places[0]
            place = np.eye(4)
            place[:3, 3] = best.position
            node.recall_pose.publish(stamped(best.last, place))
            camera = camera_at(self._memory.snapshots().values(), best.last)
            eye = None if camera is None else camera[:3, 3].tolist()
            goal = goal_before(best.position, eye, node.value("standoff"))
            node.goal_pose.publish(stamped(best.last, goal))
            return
        seen = next((moment for moment in answer.moments if moment.pose is not None), None)
        if seen is not None:  # the goal is where the camera was, looking as it did
            matrix = np.asarray(seen.pose, np.float64)
            node.recall_pose.publish(stamped(seen.time, matrix))
            eye, ahead = matrix[:3, 3], matrix[:3, 3] + matrix[:3, 2]
            goal = goal_before(ahead.tolist(), eye.tolist(), math.hypot(*matrix[:2, 2]))
            node.goal_pose.publish(stamped(seen.time, goal))

    # ------------------------------------------------------------------ changes

    def _forget(self, request: Any, response: Any) -> None:
        start, end = seconds_of(request.start), seconds_of(request.end)
        if request.older_than:
            if not request.older_than > 0 or start or end:
                raise ValueError("give either a span or an age above 0 seconds")
            span = self._memory.describe()["span"]
            start, end = -math.inf, (span[1] - request.older_than) if span else -math.inf
        elif not start and not end:
            start, end = -math.inf, math.inf
        stream = request.stream or None
        response.forgotten = self._memory.forget(start, end, stream=stream)

    def _beside(self, name: str) -> Path:
        """A folder beside the memory's own; nobody on the network reaches another place."""
        path = self._node.value("path")
        if not path:
            raise UsageError("the memory lives in RAM; start the node with -p path:=DIRECTORY")
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise ValueError(f"a name of a folder beside {path} is needed, not {name!r}")
        return Path(path).absolute().parent / name

    def _save(self, request: Any, response: Any) -> None:
        memory = self._memory
        with self._changing:
            if request.name:
                place = self._beside(request.name)
                memory.copy(place)
            else:
                place = self._place
                memory.save()
        response.path, response.bytes = str(place), memory.describe()["bytes"]

    def _load(self, request: Any, response: Any) -> None:
        node = self._node
        with self._changing:
            place = self._beside(request.name)
            if not (place / "manifest.json").exists():
                raise UsageError(f"there is no memory at {place}")
            old = self._memory
            new = VisualMemory.open(place, encoder=old.encoder)
            intake = node.intake
            if intake:
                with intake.handing:
                    intake.memory = node.memory = new
            else:
                node.memory = new
            old.close()
            self._place = place
        response.frames = new.describe()["frames"]

    def _reset(self, request: Any, response: Any) -> None:
        with self._changing:
            gone = self._memory.forget(-math.inf, math.inf)
        self._node.forget_people()
        response.message = f"{gone} moments forgotten"

    def _pause(self, request: Any, response: Any) -> None:
        if self._node.intake is None:
            raise UsageError("the node is not active")
        self._node.intake.paused = bool(request.data)
        response.message = "paused" if request.data else "remembers"
