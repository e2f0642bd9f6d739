"""The URLs of the hosted site."""

from __future__ import annotations

from django.urls import path

from . import bad_views, upload_views, views

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
    path("events/page/", views.events_page),
    path("events/seen/", views.events_seen),
    path("events/for/browser/", views.events_for_browser),
    path("events/", views.events),
    path("sync/events/", views.sync_events),
    path("no/events/", views.no_events),
    path("many/events/", views.many_events),
    path("failing/events/", views.failing_events),
    path("file/", views.file),
    path("store/", upload_views.store),
    path("sync/store/", upload_views.sync_store),
    path("store/later/", upload_views.store_later),
    path("take/", upload_views.take),
    path("sync/take/", upload_views.sync_take),
    path("failing/", bad_views.failing),
    path("sync/failing/", bad_views.sync_failing),
    path("odd/parts/", bad_views.odd_parts),
    path("odd/errors/<str:where>/<str:kind>/", bad_views.odd_errors),
    path("no/parts/", bad_views.no_parts),
    path("shrinking/file/", bad_views.shrinking_file),
    path("vanishing/file/", bad_views.vanishing_file),
    path("unsendable/", bad_views.unsendable),
    path("wrong/length/", bad_views.wrong_length),
    path("pausing/", bad_views.pausing),
    path("uninterested/", bad_views.uninterested),
]
