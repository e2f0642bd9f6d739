"""Programs that `test_tools` runs: tools that measure and report, and a small site."""
