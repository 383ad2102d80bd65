"""Durable memories: segments, tail log, manifest, event index."""
