"""What the server runs: hypercorn -k trio teahouse.asgi:application."""

import os

# The one line that changes; it was "from django.core.asgi import ...".
from trio_asgi import ASGIStaticFilesHandler, get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "teahouse.settings")

# The handler around it is for development only: it serves style sheets and scripts
# from this process, as runserver does. Elsewhere a web server or WhiteNoise does that.
application = ASGIStaticFilesHandler(get_asgi_application())
