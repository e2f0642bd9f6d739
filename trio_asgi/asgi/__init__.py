"""The conversation with the server. Trio only."""
