"""The ASGI protocols: receiving from the server and sending to it. Trio only."""
