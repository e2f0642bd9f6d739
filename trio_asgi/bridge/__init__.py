"""What is replaced in asgiref and Django, and how it is undone."""
