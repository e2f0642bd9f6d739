"""How much of a body one message holds.

Each message costs the server time, so quick clients get large ones. Until the client
takes it, a message costs memory, so all others get small ones.
"""

from __future__ import annotations

from typing import Final

#: A quick client takes a message in less than this; seconds.
QUICK: Final = 0.005
#: A slow client takes longer than this; seconds.
SLOW: Final = 0.1

#: The smallest limit of a message; bytes.
SMALLEST: Final = 2**14
#: The largest limit for a client that has only begun to read; bytes.
LARGE: Final = 2**18

#: Above `LARGE`, a message may hold one part in so many of what the client has taken:
#: the kernels of both sides buffer some megabytes even for a client that reads nothing.
_PART: Final = 32


def next_size(size: int, sent: int, *, seconds: float, taken: int, largest: int) -> int:
    """Return how many bytes the next message may hold, ``largest`` at most.

    The last one could hold ``size`` bytes, held ``sent``, and took the server
    ``seconds``. The client has taken ``taken`` bytes in all.
    """
    if seconds > SLOW:
        return max(size // 2, SMALLEST)
    if seconds < QUICK and sent >= size // 2:
        return max(size, min(size * 2, largest, max(LARGE, taken // _PART)))
    return size
