"""The settings, and the reports about wrong ones."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from thread_support import run_script
from trio_asgi import conf, get_asgi_application
from trio_asgi.threads.current import current_pool

if TYPE_CHECKING:
    from pathlib import Path

WRONG: list[tuple[Any, str, str]] = [
    ([], "E001", "TRIO_ASGI must be a dict, not []."),
    (
        {"TREADS": 1},
        "E002",
        "TRIO_ASGI has no key 'TREADS'. Known keys: THREADS, MAX_HELD_THREADS, "
        "THREAD_IDLE_SECONDS, ASYNCIO_VIEWS, ASYNC_TO_SYNC_BACKEND, STREAM_BODY, "
        "MAX_BODY_SIZE, BODY_TIMEOUT, BODY_MIN_RATE, BODY_TOTAL_TIMEOUT, SEND_TIMEOUT, "
        "CLEANUP_SECONDS, SHUTDOWN_SECONDS.",
    ),
    (
        {"THREADS": 0},
        "E003",
        "TRIO_ASGI['THREADS'] must be a whole number of threads, 1 or more, not 0.",
    ),
    (
        {"THREADS": "40"},
        "E003",
        "TRIO_ASGI['THREADS'] must be a whole number of threads, 1 or more, not '40'.",
    ),
    (
        {"THREADS": True},
        "E003",
        "TRIO_ASGI['THREADS'] must be a whole number of threads, 1 or more, not True.",
    ),
    (
        {"MAX_HELD_THREADS": 0},
        "E003",
        "TRIO_ASGI['MAX_HELD_THREADS'] must be a whole number of threads, 1 or more, "
        "or None for no limit, not 0.",
    ),
    (
        {"THREAD_IDLE_SECONDS": -1},
        "E003",
        "TRIO_ASGI['THREAD_IDLE_SECONDS'] must be a number of seconds, 0 or more, "
        "not -1.",
    ),
    (
        {"SHUTDOWN_SECONDS": None},
        "E003",
        "TRIO_ASGI['SHUTDOWN_SECONDS'] must be a number of seconds, 0 or more, "
        "not None.",
    ),
    (
        {"STREAM_BODY": 1},
        "E003",
        "TRIO_ASGI['STREAM_BODY'] must be True or False, not 1.",
    ),
    (
        {"MAX_BODY_SIZE": 2.5},
        "E003",
        "TRIO_ASGI['MAX_BODY_SIZE'] must be a whole number of bytes, 0 or more, or "
        "None for no limit, not 2.5.",
    ),
    (
        {"BODY_TIMEOUT": 0},
        "E003",
        "TRIO_ASGI['BODY_TIMEOUT'] must be a number of seconds, more than 0, not 0.",
    ),
    (
        {"CLEANUP_SECONDS": "10"},
        "E003",
        "TRIO_ASGI['CLEANUP_SECONDS'] must be a number of seconds, 0 or more, "
        "not '10'.",
    ),
]


@pytest.mark.parametrize(("value", "number", "message"), WRONG)
def test_a_wrong_setting_is_reported(value: Any, number: str, message: str) -> None:
    """The system check and the application both name the key and the allowed values."""
    with override_settings(TRIO_ASGI=value):
        (error,) = run_checks()
        assert (error.id, error.msg) == (f"trio_asgi.{number}", message)
        with pytest.raises(ImproperlyConfigured) as raised:
            get_asgi_application()
    assert str(raised.value) == message


def test_several_wrong_settings_are_all_reported() -> None:
    """One run of the check shows every problem."""
    with override_settings(TRIO_ASGI={"THREADS": 0, "OTHER": 1}):
        assert [error.id for error in run_checks()] == [
            "trio_asgi.E003",
            "trio_asgi.E002",
        ]


def test_right_settings_are_not_reported() -> None:
    """Every key can be set, and none has to be."""
    for value in ({}, {name: key.default for name, key in conf.KEYS.items()}):
        with override_settings(TRIO_ASGI=value):
            assert run_checks() == []


def test_the_worker_threads_have_the_settings() -> None:
    """The settings reach the pool of the next Trio run."""
    import trio  # noqa: PLC0415

    async def main() -> tuple[float, float]:
        pool = current_pool()
        return pool.queue.threads, pool.idle_seconds

    with override_settings(TRIO_ASGI={"THREADS": 3, "THREAD_IDLE_SECONDS": 0.5}):
        get_asgi_application()
        assert trio.run(main) == (3, 0.5)
    get_asgi_application()
    assert trio.run(main) == (40, 30)


# When the settings are read


SETTINGS = """
import sys
import trio
import trio_asgi
from asgiref.sync import sync_to_async
from django.conf import settings

def configure(**trio_asgi):
    settings.configure(
        TRIO_ASGI=trio_asgi,
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": sys.argv[1],
                "CONN_MAX_AGE": None,
            }
        },
    )

def query():
    from django.db import connection
    connection.ensure_connection()
    return connection

async def show():
    from trio_asgi.threads.current import current_pool
    pool = current_pool()
    print(
        pool.queue.threads,
        pool.slots and pool.slots.total_tokens,
        pool.idle_seconds,
    )

trio_asgi.install_bridge()
"""


@pytest.mark.parametrize(
    "steps",
    [
        # A program that uses only the ORM.
        """
        configure(THREADS=3, MAX_HELD_THREADS=2, THREAD_IDLE_SECONDS=9)

        async def main():
            used.append(await sync_to_async(query)())
            await show()
        """,
        # Then it makes the handler, in the same run.
        """
        configure(THREADS=3, MAX_HELD_THREADS=2, THREAD_IDLE_SECONDS=9)

        async def main():
            used.append(await sync_to_async(query)())
            trio_asgi.get_asgi_application()
            await show()
        """,
        # The first call comes before there are settings.
        """
        async def main():
            await sync_to_async(int)()
            configure(THREADS=3, MAX_HELD_THREADS=2, THREAD_IDLE_SECONDS=9)
            trio_asgi.get_asgi_application()
            used.append(await sync_to_async(query)())
            await show()
        """,
    ],
)
def test_settings_count_whenever_the_first_call_comes(
    tmp_path: Path, steps: str
) -> None:
    """Also when the ORM was used before the handler was made."""
    script = f"{SETTINGS}\nused = []\n{textwrap.dedent(steps)}\n"
    script += "trio.run(main)\nprint(used[0].connection)"
    assert run_script(script, str(tmp_path / "db")) == "3 2 9\nNone\n"


def test_wrong_settings_are_refused_at_the_first_call(tmp_path: Path) -> None:
    """A program that makes no handler gets the error, too."""
    script = f"""{SETTINGS}
configure(THREADS=0)

async def main():
    await sync_to_async(query)()

try:
    trio.run(main)
except Exception as error:
    print(type(error).__name__, error)
"""
    assert run_script(script, str(tmp_path / "db")) == (
        "ImproperlyConfigured TRIO_ASGI['THREADS'] must be a whole number of threads, "
        "1 or more, not 0.\n"
    )


async def test_a_new_handler_changes_the_options_of_the_run() -> None:
    """The bound applies to new leases; those that hold a thread keep it."""
    pool = current_pool()
    before = pool.lease()
    await before.run_sync(int)
    try:
        for leases in (3, 2, None):
            with override_settings(
                TRIO_ASGI={"THREADS": 7, "MAX_HELD_THREADS": leases}
            ):
                get_asgi_application()
            lease = pool.lease()
            await lease.run_sync(int)
            assert pool.queue.threads == 7
            if leases is None:
                assert pool.slots is None
            else:
                assert pool.slots is not None
                assert pool.slots.total_tokens == leases
                assert pool.slots.borrowed_tokens == 1
            lease.release()
    finally:
        before.release()
        get_asgi_application()


def test_djangos_settings_are_always_the_current_ones() -> None:
    """Whether one was read before, is overridden, set, deleted, or missing."""
    assert conf.setting("APPEND_SLASH") is settings.APPEND_SLASH is True
    with override_settings(APPEND_SLASH=False):
        assert conf.setting("APPEND_SLASH") is False
        settings.APPEND_SLASH = None
        assert conf.setting("APPEND_SLASH") is None
    assert conf.setting("APPEND_SLASH") is True
    with override_settings(), pytest.raises(AttributeError):
        del settings.APPEND_SLASH
        conf.setting("APPEND_SLASH")
    assert conf.setting("APPEND_SLASH") is True


def test_a_key_is_always_the_current_one() -> None:
    """Whether or not there is a dict of keys, and was one before."""
    for _ in range(2):
        with override_settings():
            if hasattr(settings, "TRIO_ASGI"):
                del settings.TRIO_ASGI
            assert conf.get("STREAM_BODY") is False
            with override_settings(TRIO_ASGI={"STREAM_BODY": True}):
                assert conf.get("STREAM_BODY") is True
            assert conf.get("STREAM_BODY") is False
            settings.TRIO_ASGI = {"STREAM_BODY": True}
            assert conf.get("STREAM_BODY") is True
