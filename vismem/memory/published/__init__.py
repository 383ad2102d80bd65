"""The published banks, to the number, quirks included; each module names its paper and code."""
