"""Databases that a test adds to those of the settings, and their servers."""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pymysql  # type: ignore[import-untyped]
import trio
from django.contrib.contenttypes.models import ContentType
from django.db import connections
from django.db.models import Func, IntegerField
from psycopg import sql

from support import skip_without_server
from trio_asgi.bridge import pool_options
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

# Django's backend imports this name; the package with the C version needs a compiler.
pymysql.install_as_MySQLdb()


@contextmanager
def add_database(settings: dict[str, Any]) -> Iterator[str]:
    """Add a database to the settings; yield its new alias.

    Threads that have connections must have ended before the end of the block.
    """
    # This makes our threads close their connections.
    pool_options.configure_threads()
    alias = f"of_a_test_{uuid.uuid4().hex}"
    connections.settings[alias] = settings
    connections.configure_settings(connections.settings)
    try:
        yield alias
    finally:
        if hasattr(connections._connections, alias):  # type: ignore[attr-defined]
            connections[alias].close()
            del connections[alias]
        del connections.settings[alias]


@asynccontextmanager
async def open_database(settings: dict[str, Any]) -> AsyncIterator[str]:
    """Add a database like `add_database`; first end this Trio run's idle threads."""
    with add_database(settings) as alias:
        try:
            yield alias
        finally:
            with trio.CancelScope(shield=True):
                await current_pool().retire_idle()


def sqlite_in(path: Path, **settings: Any) -> dict[str, Any]:
    """Return the settings of an SQLite database in a file."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path / "db.sqlite3"),
        **settings,
    }


class Server(ABC):
    """A database server, and on it a database for a test, which has one row."""

    #: An SQL function that identifies the connection.
    id_function: str
    #: A command that shows whether the server is there.
    error: type[Exception]

    def __init__(self) -> None:
        self.name = f"trio_asgi_{uuid.uuid4().hex}"

    @abstractmethod
    def execute(self, query: Any, *args: object) -> list[Any]:
        """Run a query as the administrator, and return the first column."""

    @abstractmethod
    def create(self) -> None:
        """Create the database."""

    @abstractmethod
    def drop(self) -> None:
        """Drop the database."""

    @abstractmethod
    def settings(self, **settings: Any) -> dict[str, Any]:
        """Return Django's settings for the database, with additions."""

    @abstractmethod
    def connection_ids(self) -> set[int]:
        """Return the ids of the connections to the database."""

    @abstractmethod
    def kill(self, connection_id: int) -> None:
        """Cut a connection off from the server's side."""

    async def wait_connections(self, number: int) -> None:
        """Wait until there are this many connections: the server notes an end late."""
        with trio.fail_after(10):
            while len(self.connection_ids()) != number:
                await trio.sleep(0.01)

    async def wait_killed(self, connection_id: int) -> None:
        """Cut a connection off, and wait until the server has done it."""
        self.kill(connection_id)
        with trio.fail_after(10):
            while connection_id in self.connection_ids():
                await trio.sleep(0.01)


class PostgreSQL(Server):
    """PostgreSQL, configured by the environment as its own tools are."""

    id_function = "pg_backend_pid"
    error = psycopg.OperationalError

    def execute(self, query: Any, *args: object) -> list[Any]:
        """Run a query in the database that always exists."""
        with psycopg.connect(
            host=os.environ.get("PGHOST", "127.0.0.1"),
            user=os.environ.get("PGUSER", "postgres"),
            dbname="postgres",
            connect_timeout=5,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(query, args)
            return [row[0] for row in cursor] if cursor.description else []

    def create(self) -> None:
        """Create the database."""
        self.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))

    def drop(self) -> None:
        """Drop the database; an error if a client is connected."""
        self.execute(sql.SQL("DROP DATABASE {}").format(sql.Identifier(self.name)))

    def settings(self, **settings: Any) -> dict[str, Any]:
        """Return Django's settings; all connections have the name of the database."""
        options = {"application_name": self.name, **settings.pop("OPTIONS", {})}
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ.get("PGHOST", "127.0.0.1"),
            "PORT": os.environ.get("PGPORT", "5432"),
            "USER": os.environ.get("PGUSER", "postgres"),
            "NAME": self.name,
            "OPTIONS": options,
            **settings,
        }

    def connection_ids(self) -> set[int]:
        """Return the process id of each connection."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        return set(self.execute(query, self.name))

    def kill(self, connection_id: int) -> None:
        """End the process of a connection."""
        self.execute("SELECT pg_terminate_backend(%s)", connection_id)


class MariaDB(Server):
    """MariaDB, configured by the environment as its own tools are."""

    id_function = "connection_id"
    error = pymysql.err.OperationalError

    def execute(self, query: Any, *args: object) -> list[Any]:
        """Run a query without a database."""
        connection = pymysql.connect(
            host=os.environ.get("MYSQL_HOST", "127.0.0.1"),
            port=int(os.environ.get("MYSQL_TCP_PORT", "3306")),
            user=os.environ.get("MYSQL_USER", "root"),
            password=os.environ.get("MYSQL_PWD", ""),
            connect_timeout=5,
            autocommit=True,
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(query, args)
            return [row[0] for row in cursor]

    def create(self) -> None:
        """Create the database."""
        self.execute(f"CREATE DATABASE {self.name}")

    def drop(self) -> None:
        """Drop the database."""
        self.execute(f"DROP DATABASE {self.name}")

    def settings(self, **settings: Any) -> dict[str, Any]:
        """Return Django's settings."""
        return {
            "ENGINE": "django.db.backends.mysql",
            "HOST": os.environ.get("MYSQL_HOST", "127.0.0.1"),
            "PORT": os.environ.get("MYSQL_TCP_PORT", "3306"),
            "USER": os.environ.get("MYSQL_USER", "root"),
            "PASSWORD": os.environ.get("MYSQL_PWD", ""),
            "NAME": self.name,
            **settings,
        }

    def connection_ids(self) -> set[int]:
        """Return the connections that use the database."""
        query = "SELECT id FROM information_schema.processlist WHERE db = %s"
        return set(self.execute(query, self.name))

    def kill(self, connection_id: int) -> None:
        """Cut a connection off."""
        self.execute("KILL CONNECTION %s", connection_id)


@contextmanager
def open_server(kind: type[Server]) -> Iterator[Server]:
    """Create a database with a table for the block, or skip the test."""
    server = kind()
    try:
        server.execute("SELECT 1")
    except kind.error as error:
        skip_without_server(f"no {kind.__name__} answers: {error}")
    server.create()
    try:
        with add_database(server.settings()) as alias:
            with connections[alias].schema_editor() as editor:
                editor.create_model(ContentType)
            ContentType.objects.using(alias).create(app_label="a", model="model")
        yield server
    finally:
        server.drop()


def connection_of(server: Server, alias: str) -> Any:
    """Return a query set of one row: the id of its connection."""
    which = Func(function=server.id_function, output_field=IntegerField())
    rows = ContentType.objects.using(alias).annotate(connection=which)
    return rows.values_list("connection", flat=True)
