"""Fill an empty database: ``python -m project.prepare``, in the project's environment.

The session has a known key, so that every request can carry its cookie.
"""

from __future__ import annotations

import os
from importlib import import_module

import django
from django.conf import settings
from django.core.management import call_command

#: The user of the session.
USERNAME = "leaf"
SESSION_KEY = "0123456789abcdefghijklmnopqrstuv"


def prepare() -> None:
    """Make the tables, one user with a session, and one row."""
    call_command("migrate", run_syncdb=True, verbosity=0)

    from django.contrib.auth import (  # noqa: PLC0415 - models need django.setup()
        BACKEND_SESSION_KEY,
        HASH_SESSION_KEY,
        SESSION_KEY as USER_SESSION_KEY,
        get_user_model,
    )

    from .models import Tea  # noqa: PLC0415

    user = get_user_model().objects.create_user(USERNAME)
    session = import_module(settings.SESSION_ENGINE).SessionStore(SESSION_KEY)
    # Before anything is put in: a key that is not there yet would be dropped.
    session.save(must_create=True)
    session[USER_SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    Tea.objects.create(pk=1, name="Sencha")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    django.setup()
    prepare()
