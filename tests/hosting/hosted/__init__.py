"""The project that the tests serve: it records what happens to it."""
