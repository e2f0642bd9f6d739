"""A response to messages."""
