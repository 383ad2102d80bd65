"""Film `data/gallery.mp4` from licence-clear photographs, and write down what it shows.

    pip install scikit-image scikit-learn av opencv-python-headless
    python scripts/make_gallery.py

A camera pans and zooms over seven photographs that ship inside the wheels of scikit-image and
scikit-learn (authors and licences: `data/README.md`). Two of them are visited twice, so that "when
did I see the cat?" has two answers. `data/gallery.json` holds the timetable and plain questions
with the spans, in seconds, in which the best moment of an answer may lie; no span means that the
thing was never seen and the right answer is to abstain.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

DATA = Path(__file__).resolve().parent.parent / "data"
WIDTH, HEIGHT, FPS = 640, 360, 12


@dataclass(frozen=True)
class Scene:
    """One camera move over one photograph.

    Args:
        clip: Name of the photograph.
        seconds: How long the scene lasts.
        start: View at the first frame: centre x, centre y and width, in pixels of the photograph.
        end: The same at the last frame.
        dissolve: Seconds over which the scene fades in over the one before; 0 is a hard cut.
    """

    clip: str
    seconds: int
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    dissolve: float = 0.0

    def view(self, image: np.ndarray, time: float) -> np.ndarray:
        """What the camera sees `time` seconds into the scene, `(HEIGHT, WIDTH, 3)` uint8."""
        progress = min(time / self.seconds, 1.0)
        ease = progress * progress * (3.0 - 2.0 * progress)
        x, y, width = (1.0 - ease) * np.array(self.start) + ease * np.array(self.end)
        scale = width / WIDTH
        # Maps pixel centres of the frame to the photograph, so that slow moves never jump a pixel.
        to_photograph = np.array(
            [
                [scale, 0.0, x - scale * (WIDTH - 1) / 2],
                [0.0, scale, y - scale * (HEIGHT - 1) / 2],
            ]
        )
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(
            image, to_photograph, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )


# The astronaut's view stays left of the model shuttle, so that "a rocket" has one answer only.
SCENES = (
    Scene("cat", 5, (225, 150, 440), (190, 150, 330)),
    Scene("coffee", 5, (340, 240, 420), (300, 200, 600), dissolve=0.5),
    Scene("rocket", 6, (330, 290, 460), (320, 200, 620)),
    Scene("astronaut", 6, (183, 330, 350), (183, 115, 340)),
    Scene("flower", 4, (290, 215, 540), (320, 190, 380), dissolve=0.5),
    Scene("temple", 6, (200, 240, 380), (330, 240, 600)),
    Scene("cat", 5, (230, 130, 310), (225, 160, 430)),
    Scene("photographer", 6, (256, 300, 510), (215, 170, 380)),
    Scene("coffee", 4, (250, 190, 480), (320, 210, 400), dissolve=0.5),
)

QUESTIONS = {
    "a cat": ("cat",),
    "a cup of coffee": ("coffee",),
    "a rocket": ("rocket",),
    "an astronaut": ("astronaut",),
    "a person": ("astronaut", "photographer"),
    "a flower": ("flower",),
    "a temple": ("temple",),
    "a tripod": ("photographer",),
    "an elephant": (),
    "a school bus": (),
    "a piano": (),
    "a dog": (),
}


def timetable() -> dict[str, Any]:
    """Segments and questions of the clip, as `data/gallery.json` holds them."""
    segments: list[dict[str, Any]] = []
    start = 0
    for scene in SCENES:
        segments.append({"clip": scene.clip, "start": start, "end": start + scene.seconds})
        start += scene.seconds
    questions = [
        {"ask": ask, "spans": [[s["start"], s["end"]] for s in segments if s["clip"] in clips]}
        for ask, clips in QUESTIONS.items()
    ]
    return {"video": "gallery.mp4", "segments": segments, "questions": questions}


def photographs() -> dict[str, np.ndarray]:
    """The seven photographs, each `(H, W, 3)` uint8 RGB; nothing is downloaded."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    return {
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "rocket": skimage.data.rocket(),
        "astronaut": skimage.data.astronaut(),
        "photographer": np.repeat(skimage.data.camera()[:, :, None], 3, axis=2),
        "flower": load_sample_image("flower.jpg"),
        "temple": load_sample_image("china.jpg"),
    }


def frames(images: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    """Every frame of the clip, `(HEIGHT, WIDTH, 3)` uint8 RGB."""
    last: np.ndarray | None = None
    for scene in SCENES:
        image = images[scene.clip]
        for index in range(scene.seconds * FPS):
            time = index / FPS
            frame = scene.view(image, time)
            if last is not None and time < scene.dissolve:
                share = (time + 1 / FPS) / (scene.dissolve + 1 / FPS)
                frame = cv2.addWeighted(frame, share, last, 1.0 - share, 0.0)
            yield frame
        last = scene.view(image, scene.seconds)


def main() -> None:
    """Write the clip and its timetable."""
    with av.open(str(DATA / "gallery.mp4"), "w", options={"movflags": "faststart"}) as container:
        options = {"crf": "24", "preset": "veryslow", "g": str(4 * FPS)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # x264 repeats itself bit for bit on one thread only
        for image in frames(photographs()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    text = json.dumps(timetable(), indent=1)
    (DATA / "gallery.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
