"""Exact top-k search over a bank of vectors."""
