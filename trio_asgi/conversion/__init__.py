"""System checks that say what a project needs to run well on Trio."""
