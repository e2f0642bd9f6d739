"""Running asyncio code inside Trio."""
