"""What sentry-sdk has seen of the site, as JSON: ``early|late``."""

from __future__ import annotations

import json
import sys
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport

from tools import site_of_many

seen: dict[str, list[Any]] = {"event": [], "transaction": []}


class Memory(Transport):
    """Keeps the data that would be sent."""

    def capture_envelope(self, envelope: Any) -> None:
        """Keep the items."""
        for item in envelope.items:
            if item.type in seen:
                seen[item.type].append(item.payload.json)


def init() -> None:
    """Start Sentry like a user's program."""
    sentry_sdk.init(
        dsn="http://key@127.0.0.1/1",
        transport=Memory(),
        integrations=[DjangoIntegration(middleware_spans=True)],
        traces_sample_rate=1.0,
        send_default_pii=True,
    )


if __name__ == "__main__":
    if sys.argv[1] == "early":
        init()
    import trio

    import trio_asgi.handler

    if sys.argv[1] == "late":
        init()
    site_of_many.configure()
    site_of_many.before = lambda number: sentry_sdk.set_tag("number", number)
    site_of_many.after = lambda number: sentry_sdk.add_breadcrumb(message=str(number))
    app = trio_asgi.get_asgi_application()
    statuses = trio.run(site_of_many.make_all_requests, app, site_of_many.log_in())
    on_main = [thread.name for thread in site_of_many.threads_of_async]
    print(json.dumps({**seen, "statuses": statuses, "async": on_main}))  # noqa: T201
