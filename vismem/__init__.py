"""vismem."""
