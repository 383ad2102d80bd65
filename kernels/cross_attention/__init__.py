"""Attention of queries to rows of a memory, in Triton: what `aggregate` and `mem_xattn` share.

No causality, no positions. Rows may be given by number in place of copies, be fewer in some batch
entries than in others, be biased, and be narrower or wider as values than as keys.
"""
