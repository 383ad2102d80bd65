"""What a user asks of a memory."""
