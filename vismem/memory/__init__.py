"""The memories: bounded state over tensors, one file a bank."""
