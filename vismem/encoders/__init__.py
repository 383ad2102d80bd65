"""Frames to features, words to features."""
