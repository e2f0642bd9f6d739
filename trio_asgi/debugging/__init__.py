"""What runs: tasks and threads on request, and under ``DEBUG`` a blocked loop."""
