"""Sync code in worker threads, one call at a time. Trio only."""
