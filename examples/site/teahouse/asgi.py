"""The application for the server: hypercorn -k trio teahouse.asgi:application."""

import os

# The one line that changes; it was "from django.core.asgi import ...".
from trio_asgi import ASGIStaticFilesHandler, get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "teahouse.settings")

# The static files handler is for development only: it serves style sheets and scripts
# from this process, as runserver does. In production, use a web server or ServeStatic.
application = ASGIStaticFilesHandler(get_asgi_application())
