"""How much of a body one message holds.

A message costs the server time, so a quick client gets large ones. And it costs memory
for as long as the client does not take it, so everybody else gets small ones.
"""

from __future__ import annotations

from typing import Final

#: A client is quick that takes no longer than this for a message. Seconds.
QUICK: Final = 0.005
#: A client is slow that takes longer than this. Seconds.
SLOW: Final = 0.1

#: The least that a message holds, if there is so much; bytes.
SMALLEST: Final = 2**14
#: How much it may hold for a client that has only begun to read; bytes.
LARGE: Final = 2**18

#: Above that, a message may hold such a part of what the client has taken. The kernels
#: of both sides take some megabytes at once, for a client that reads nothing, too.
_PART: Final = 32


def next_size(size: int, sent: int, *, seconds: float, taken: int, largest: int) -> int:
    """Return how much the next message may hold, after one was sent.

    Args:
        size: How much that one could hold.
        sent: How much it held.
        seconds: How long the server took for it.
        taken: How much the client has taken in all.
        largest: The most that a message may ever hold.
    """
    if seconds > SLOW:
        return max(size // 2, SMALLEST)
    if seconds < QUICK and sent >= size // 2:
        return max(size, min(size * 2, largest, max(LARGE, taken // _PART)))
    return size
