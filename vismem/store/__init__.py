"""The durable home of a memory: records that survive a crash, segments mapped from disk.

:class:`MemoryStore` is the whole of it for most users; a POSIX system is needed.
"""

from .archive import pack_memory, unpack_memory
from .events import Event, EventIndex
from .index import VectorIndex
from .record import pack, unpack
from .segment import SegmentData, SegmentFile
from .store import CommitReport, MemoryStore
from .tail import Durability
from .verify import VerifyReport, verify

__all__ = [
    "CommitReport",
    "Durability",
    "Event",
    "EventIndex",
    "MemoryStore",
    "SegmentData",
    "SegmentFile",
    "VectorIndex",
    "VerifyReport",
    "pack",
    "pack_memory",
    "unpack",
    "unpack_memory",
    "verify",
]
