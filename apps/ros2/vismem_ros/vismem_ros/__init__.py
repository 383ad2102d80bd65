"""Starts the memory node of vismem."""
