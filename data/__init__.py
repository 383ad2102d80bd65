"""Clips and small weights that travel with the library; README.md gives origin and licence."""
