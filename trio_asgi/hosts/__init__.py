"""Running the application in servers and programs. Trio only."""
