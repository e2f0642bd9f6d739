"""Replacements in asgiref and Django, and how to undo them."""
