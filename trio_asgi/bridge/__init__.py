"""Replacements for parts of asgiref and Django, and how to undo them."""
