"""asgiref's tests that are not run on Trio, and why."""

from __future__ import annotations

#: A module or a test in one, with the reason.
EXCLUDED = {
    # asyncio itself
    "test_server.py": (
        "its subject is StatelessServer, whose instances are tasks and queues of "
        "asyncio's"
    ),
    "test_timeout.py": "its subject is asgiref's copy of asyncio.timeout",
    "test_sync.py::test_async_to_sync_with_stopped_main_loop": (
        "its subject is a loop of asyncio's that was stopped and is not closed"
    ),
    # Cancellation on Trio, where a cancelled task waits for its running thread
    "test_sync.py::test_sync_to_async_with_blocker_thread_sensitive": (
        "asgiref marks it as failing; it would hang, for its blocked thread is let go "
        "only by code behind the cancelled call"
    ),
    (
        "test_sync_thread_sensitive_context.py"
        "::test_executor_context_cancellation_does_not_wait_for_worker"
    ): "wants a cancelled call to be left, with its thread running on",
    # Threads on Trio: few calls run at a time, and the loop lets more of them begin
    (
        "test_sync.py"
        "::test_thread_sensitive_context_exit_does_not_starve_default_executor"
    ): "blocks the loop until a second thread has begun to run a call",
    # Where asgiref keeps its state
    (
        "test_sync_thread_sensitive_context.py"
        "::test_plain_context_allows_calls_after_exit"
    ): (
        "looks for the executor that asgiref has made for a late call; which thread "
        "gets the call is in our test_asgiref_semantics.py"
    ),
}


def reason(module: str, test: str) -> str | None:
    """Return why a test is excluded; None if it is run."""
    function, _, _ = test.partition("[")
    return EXCLUDED.get(f"{module}::{function}") or EXCLUDED.get(module)
