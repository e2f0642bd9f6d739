"""Sync code in worker threads, one call at a time. Needs Trio, not Django."""
