"""Keys and values of a language model over an endless stream: blocks, tiers, retrieval."""
