"""The works of the candidates, and their targets.

A work is a request of one kind, with its settings. This table is all that the other
modules know about the works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from report import Target, at_least, at_most


@dataclass(frozen=True)
class Work:
    """One kind of request."""

    #: On the command line.
    name: str
    #: For the report.
    title: str
    #: The view, and its sync twin, which the floor runs.
    view: str
    sync_view: str
    #: The expected answer.
    body: str = "hello"
    middleware: Literal["none", "seven"] = "none"
    database: Literal["sqlite", "postgresql"] = "sqlite"
    signed_in: bool = False
    #: With many requests at a time: as a multiple of the baseline's throughput, and of
    #: the floor's CPU time.
    target: Target | None = None
    floor_target: Target | None = None
    #: Whether trio_asgi and the floor keep connections, which the baseline cannot.
    keeps_connections: bool = False


WORKS = {
    work.name: work
    for work in (
        Work(
            "async",
            "async view, no middleware",
            view="hello_async",
            sync_view="hello",
            target=at_least(9),
            floor_target=at_most(1.75),
        ),
        Work(
            "seven-async",
            "async view, 7 middleware",
            view="hello_async",
            sync_view="hello",
            middleware="seven",
            target=at_least(15),
            floor_target=at_most(1.6),
        ),
        Work(
            "sync",
            "sync view, no middleware",
            view="hello",
            sync_view="hello",
            target=at_least(5),
            floor_target=at_most(2.4),
        ),
        Work(
            "seven-sync",
            "sync view, 7 middleware",
            view="hello",
            sync_view="hello",
            middleware="seven",
            target=at_least(8),
            floor_target=at_most(2.2),
        ),
        Work(
            "user-async",
            "async view, 7 middleware, signed in",
            view="user_async",
            sync_view="user",
            body="leaf",
            middleware="seven",
            signed_in=True,
        ),
        Work(
            "user-kept",
            "signed in, connections kept",
            view="user_async",
            sync_view="user",
            body="leaf",
            middleware="seven",
            signed_in=True,
            keeps_connections=True,
        ),
        Work(
            "user-postgresql",
            "async view, signed in, on PostgreSQL",
            view="user_async",
            sync_view="user",
            body="leaf",
            middleware="seven",
            database="postgresql",
            signed_in=True,
        ),
        Work(
            "user-postgresql-kept",
            "signed in, on PostgreSQL, connections kept",
            view="user_async",
            sync_view="user",
            body="leaf",
            middleware="seven",
            database="postgresql",
            signed_in=True,
            keeps_connections=True,
            target=at_least(3),
        ),
        Work(
            "row-sync",
            "sync view, a row of PostgreSQL",
            view="row",
            sync_view="row",
            body="Sencha",
            database="postgresql",
            target=at_least(4),
            keeps_connections=True,
        ),
        Work(
            "row-async",
            "async view, a row of PostgreSQL",
            view="row_async",
            sync_view="row",
            body="Sencha",
            database="postgresql",
            keeps_connections=True,
        ),
    )
}
