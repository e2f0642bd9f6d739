"""The packages, how their tests are run, and what may fail."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Package:
    """A package of the ecosystem."""

    #: As PyPI spells it; its version is the one that is installed.
    name: str
    #: The arguments for pytest or Django's test runner, from the folder of the sources.
    #: Empty if the package publishes no tests that can be run: then its tests are
    #: ours, in the folder ``ours``.
    tests: tuple[str, ...] = ()
    #: The settings, as a dotted name.
    settings: str = ""
    #: Whether Django's test runner runs them; else pytest does.
    by_django: bool = False
    #: Whether the tests' requests reach a handler. If not, they must at least be async.
    has_requests: bool = True
    #: More arguments for pytest.
    arguments: tuple[str, ...] = ()
    #: Which tests fail only on Trio, and why: patterns of names, with the reason.
    accepted: dict[str, str] = field(default_factory=dict)


SENTRY = "tests/integrations/django/"

PACKAGES = [
    Package(
        "sentry-sdk",
        tests=(
            *(f"{SENTRY}{name}" for name in ("asgi", "test_basic.py")),
            f"{SENTRY}test_cache_module.py",
            f"{SENTRY}test_data_scrubbing.py",
            f"{SENTRY}test_middleware.py",
            f"{SENTRY}test_tasks.py",
            f"{SENTRY}test_transactions.py",
        ),
        settings="tests.integrations.django.myapp.settings",
        # Each forked test sets up a database.
        arguments=("-o", "addopts=", "--nomigrations"),
    ),
    Package(
        "django-debug-toolbar",
        tests=("tests",),
        settings="tests.settings",
        by_django=True,
    ),
    Package("opentelemetry-instrumentation-asgi", ("tests",), has_requests=False),
    Package("opentelemetry-instrumentation-django", ("tests",)),
    Package("django-ninja"),
    Package("adrf"),
    Package("whitenoise"),
    Package("strawberry-graphql-django"),
    Package("django-allauth"),
    Package("django-eventstream"),
    Package("celery"),
    Package("wagtail"),
    Package(
        "django-structlog",
        accepted={
            "*::test_leaving_clients_are_logged": (
                "It catches asyncio.CancelledError, which is not Trio's. Without "
                "`request_cancelled`, the last event of such a request is the view's."
            ),
        },
    ),
]
