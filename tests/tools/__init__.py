"""Programs that `test_tools` runs: measuring and reporting tools, and a small site."""
