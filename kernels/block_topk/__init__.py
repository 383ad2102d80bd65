"""Which blocks of a memory fit a query best."""
