"""One path for each view: its name."""

from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = [
    path(f"{view.__name__}/", view)
    for view in (
        views.hello,
        views.hello_async,
        views.user,
        views.user_async,
        views.row,
        views.row_async,
        views.backend,
        views.wait,
    )
]
