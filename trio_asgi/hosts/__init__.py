"""Where the application runs. Trio only."""
