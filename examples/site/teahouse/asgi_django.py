"""The same site without trio_asgi, for the page Load to compare with.

hypercorn --bind 127.0.0.1:8001 teahouse.asgi_django:application
"""

import os

from django.conf import settings
from django.core.asgi import get_asgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "teahouse.settings"
# Its app would replace parts of asgiref.
settings.INSTALLED_APPS.remove("trio_asgi")

application = get_asgi_application()
