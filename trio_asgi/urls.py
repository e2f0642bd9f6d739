"""The page of tasks: ``path("__tasks__/", include("trio_asgi.urls"))``."""

from __future__ import annotations

from django.urls import path

from .views import tasks

app_name = "trio_asgi"
urlpatterns = [path("", tasks, name="tasks")]
