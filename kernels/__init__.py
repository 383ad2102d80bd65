"""Operators over memory: pure tensor functions, a readable reference beside each fast path."""
