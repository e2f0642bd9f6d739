"""Management commands, which Django finds by the package's place."""
