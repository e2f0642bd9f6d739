"""Where Django's sync test client gets another result through ASGI, by design.

Each test named here fails on Trio, and passes with Django's handler for tests. If one
passes on Trio too, the run fails.
"""

from __future__ import annotations

import django

_REMOTE_USER = (
    "async, Django's RemoteUserMiddleware puts HTTP_ before any name that it is given, "
    "and this one begins with HTTP_ already"
)
_ENVIRON = "an ASGI request has a scope, and no WSGI environ"
_STREAM = "what is streamed was sent, and closed, before the test reads it"
_CHUNKS = "a file is sent in larger parts than FileResponse.block_size"
_PATH = "servers decode the path, and put U+FFFD where it is not UTF-8"

#: A test, with the reason.
ACCEPTED = {
    "handlers.tests.SignalsTests.test_request_signals": _ENVIRON,
    "handlers.tests.SignalsTests.test_request_signals_streaming_response": _STREAM,
    "handlers.tests.HandlerRequestTests.test_invalid_urls": _PATH,
    "middleware_exceptions.tests.MiddlewareSyncAsyncTests.test_async_middleware": (
        "wants Django to log that async middleware was adapted for sync use"
    ),
    "test_client.tests.ClientTest.test_response_attached_request": (
        "wants a WSGIRequest with its environ"
    ),
    "test_client.tests.ClientTest.test_trace": (
        "Django puts no SERVER_PROTOCOL into an ASGI request's META"
    ),
    "view_tests.tests.test_static.StaticHelperTest.test_chunked": _CHUNKS,
    "view_tests.tests.test_static.StaticTests.test_chunked": _CHUNKS,
}

if django.VERSION < (6, 1):
    ACCEPTED |= {
        f"auth_tests.test_remote_user.CustomHeaderRemoteUserTest.{test}": _REMOTE_USER
        for test in (
            "test_header_disappears",
            "test_known_user",
            "test_last_login",
            "test_unknown_user",
            "test_user_switch_forces_new_login",
        )
    }
