"""Networks that host a memory: video language models over an endless stream."""
