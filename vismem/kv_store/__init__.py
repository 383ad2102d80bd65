"""A `KVMemory` in a directory: logged, sealed, mapped, bounded on disk."""

from vismem.kv_store.durable import DurableKV

__all__ = ["DurableKV"]
