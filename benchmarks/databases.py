"""The databases: a SQLite file and a PostgreSQL database, created for one run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Skipped(Exception):  # noqa: N818 - not an error
    """Something cannot be measured here; the message says why."""


@contextmanager
def open_databases() -> Iterator[dict[str, str]]:
    """Create the databases: "sqlite" is a path, "postgresql" a name.

    Without a PostgreSQL server, "no postgresql" says why.

    Raises:
        Skipped: there is no server, and ``TRIO_ASGI_SERVICES`` says "required".
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        found["sqlite"] = str(Path(directory) / "benchmark.sqlite3")
        _prepare(BENCHMARK_SQLITE=found["sqlite"])
        try:
            server = connect()
        except Skipped as reason:
            if os.environ.get("TRIO_ASGI_SERVICES") == "required":
                raise
            found["no postgresql"] = str(reason)
            yield found
            return
        name = f"trio_asgi_benchmark_{os.getpid()}"
        with server:
            server.execute(f"CREATE DATABASE {name}")
            try:
                _prepare(BENCHMARK_POSTGRESQL=name)
                found["postgresql"] = name
                yield found
            finally:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def connect() -> Any:
    """Connect to the PostgreSQL server that the environment names.

    Raises:
        Skipped: there is no server, or no psycopg.
    """
    try:
        import psycopg  # noqa: PLC0415 - may be missing
    except ImportError as error:
        raise Skipped(f"no psycopg: {error}") from error
    try:
        return psycopg.connect(
            host=os.environ.get("PGHOST", "127.0.0.1"),
            port=os.environ.get("PGPORT", "5432"),
            user=os.environ.get("PGUSER", "postgres"),
            password=os.environ.get("PGPASSWORD", ""),
            dbname=os.environ.get("PGDATABASE", "postgres"),
            connect_timeout=5,
            autocommit=True,
        )
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        raise Skipped(f"no PostgreSQL: {reason}") from error


def _prepare(**variables: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "project.prepare"],
        cwd=Path(__file__).parent,
        env={**os.environ, **variables},
        check=True,
    )
