"""An application for servers with several workers: each ends in its own time.

When one worker has ended, the servers' parent process sends SIGTERM to the others,
which would end them in the middle of a request. It has told them to shut down before.
"""

from __future__ import annotations

import multiprocessing
import signal

from .asgi import lasting

if multiprocessing.parent_process() is not None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

application = lasting
