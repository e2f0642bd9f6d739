"""A request, its body, its beginning and its end."""
