"""Islands on the host loop: the tests of islands once more, in a guest run."""

from __future__ import annotations

import inspect

import pytest

import test_islands
from guest_support import run_in_guest

#: On the host loop these are the server's business.
_OF_TRIO_ASYNCIO = {
    "test_a_loop_that_was_closed_is_replaced",
    "test_no_island_while_the_loop_is_closed",
    "test_the_loop_ends_while_a_stream_makes_an_item",
    "test_the_loop_ends_between_two_items",
    "test_the_programs_own_loop_is_used",
    "test_a_task_that_nobody_awaits_exits",
    "test_a_callback_of_a_file_exits",
}

for name, found in vars(test_islands).items():
    if not name.startswith("test_"):
        continue
    if inspect.iscoroutinefunction(found) and name not in _OF_TRIO_ASYNCIO:
        globals()[name] = pytest.mark.trio(run=run_in_guest)(found)
