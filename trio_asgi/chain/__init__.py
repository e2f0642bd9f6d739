"""The middleware chain."""
