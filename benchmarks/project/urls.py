"""One path for each view: its name and its arguments."""

from __future__ import annotations

from django.urls import path

from . import body_views, views

urlpatterns = [
    path("download/<name>/", body_views.download),
    path("rows/<int:count>/", body_views.rows),
    path("events/<int:milliseconds>/", body_views.events),
]
urlpatterns += [
    path(f"{view.__name__}/", view)
    for view in (
        views.hello,
        views.hello_async,
        views.slow,
        views.slow_async,
        views.user,
        views.user_async,
        views.row,
        views.row_async,
        views.backend,
        views.wait,
        body_views.upload,
        body_views.upload_stream,
    )
]
