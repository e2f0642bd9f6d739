"""The middleware chain: planned at start-up, gone through by each request."""
