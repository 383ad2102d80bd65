"""vismem: a camera stream goes in, a memory of fixed size comes out.

import vismem as vm

memory = vm.VisualMemory(budget="64MB")
for frame in vm.open_stream("clip.mp4", fps=2):
    memory.write(frame)
print(memory.ask("when does the dog appear?").text)
memory.save("clip.mem")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vismem.detections import Detections
    from vismem.encoders import load_encoder
    from vismem.errors import SourceError, StoreError, UsageError, VismemError
    from vismem.frame import Frame
    from vismem.heads.answer import Answer, Moment
    from vismem.memory.base import Budget, Memory, Recall
    from vismem.memory.episodic import EpisodicConfig, EpisodicMemory
    from vismem.memory.spatial import SpatialConfig, SpatialMemory
    from vismem.memory.static_dynamic.memory import StaticDynamicConfig, StaticDynamicMemory
    from vismem.model_memory import ModelSettings
    from vismem.models.detector import MemoryDetector
    from vismem.models.mask_tracker import MaskTracker
    from vismem.models.video_llm import VideoLLM
    from vismem.pipeline import VisualMemory
    from vismem.streams import Stream, open_stream

__version__ = "0.1.0"

# Where each public name lives; loaded when first used, so that `import vismem` costs nothing.
_HOMES = {
    "Answer": "vismem.heads.answer",
    "Budget": "vismem.memory.base",
    "Detections": "vismem.detections",
    "EpisodicConfig": "vismem.memory.episodic",
    "EpisodicMemory": "vismem.memory.episodic",
    "Frame": "vismem.frame",
    "MaskTracker": "vismem.models.mask_tracker",
    "Memory": "vismem.memory.base",
    "MemoryDetector": "vismem.models.detector",
    "ModelSettings": "vismem.model_memory",
    "Moment": "vismem.heads.answer",
    "Recall": "vismem.memory.base",
    "SourceError": "vismem.errors",
    "SpatialConfig": "vismem.memory.spatial",
    "SpatialMemory": "vismem.memory.spatial",
    "StaticDynamicConfig": "vismem.memory.static_dynamic.memory",
    "StaticDynamicMemory": "vismem.memory.static_dynamic.memory",
    "StoreError": "vismem.errors",
    "Stream": "vismem.streams",
    "UsageError": "vismem.errors",
    "VideoLLM": "vismem.models.video_llm",
    "VismemError": "vismem.errors",
    "VisualMemory": "vismem.pipeline",
    "load_encoder": "vismem.encoders",
    "open_stream": "vismem.streams",
}

__all__ = [
    "Answer",
    "Budget",
    "Detections",
    "EpisodicConfig",
    "EpisodicMemory",
    "Frame",
    "MaskTracker",
    "Memory",
    "MemoryDetector",
    "ModelSettings",
    "Moment",
    "Recall",
    "SourceError",
    "SpatialConfig",
    "SpatialMemory",
    "StaticDynamicConfig",
    "StaticDynamicMemory",
    "StoreError",
    "Stream",
    "UsageError",
    "VideoLLM",
    "VismemError",
    "VisualMemory",
    "load_encoder",
    "open_stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vismem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
