"""asyncio code inside Trio."""
