"""The Django project that is measured: a few views, settings from the environment."""
