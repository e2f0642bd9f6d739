"""Other packages' own tests, their requests answered by our handler: see `run`."""
