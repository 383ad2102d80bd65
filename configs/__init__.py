"""Presets: YAML over the dataclasses of the library."""
