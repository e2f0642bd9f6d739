"""Looking at what runs: at tasks and threads on request, at a blocked loop always."""
