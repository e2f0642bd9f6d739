"""The URLs of the hosted site."""

from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = [
    path("hello/", views.hello),
    path("sync/hello/", views.sync_hello),
    path("digest/", views.digest),
    path("sync/digest/", views.sync_digest),
    path("upload/", views.upload),
    path("meet/", views.meet),
    path("wait/", views.wait),
    path("wait/for/file/", views.wait_for_file),
    path("sync/wait/", views.sync_wait),
    path("sync/hang/", views.sync_hang),
    path("stream/", views.stream),
    path("sync/stream/", views.sync_stream),
    path("flood/", views.flood),
    path("sync/flood/", views.sync_flood),
    path("large/", views.large),
    path("sync/large/", views.sync_large),
    path("boom/", views.boom),
    path("sync/boom/", views.sync_boom),
    path("state/", views.state),
]
