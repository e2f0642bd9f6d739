"""Running the application in servers and programs. Needs Trio, not Django."""
