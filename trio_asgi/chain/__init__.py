"""The middleware chain: planned at start-up, run for each request."""
