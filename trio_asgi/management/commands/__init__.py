"""``manage.py trio_asgi_hops``: what a request's hops come from."""
