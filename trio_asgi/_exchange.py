"""One request and its response: who cancels whom.

run(respond)                      a watcher, in the same nursery
────────────                      ──────────────────────────────
respond() runs                    waits for the disconnect
   ◄──────────── cancels ───────  the client has left
respond() has ended ─ cancels ─►
   ◄───── stops waiting for ────  the server has cancelled both, and the patience
          its thread              with sync code, which runs on, is at its end
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ._beside import run_beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._worker import Lease


class Exchange:
    """Runs what answers a request, until it is done or the client has left.

    Owned by the request's task. No exception group leaves it that did not come out of
    ``respond`` as a group.
    """

    def __init__(
        self,
        *,
        wait_disconnect: Callable[[], Awaitable[None]],
        is_complete: Callable[[], bool],
        lease: Lease,
        patience: float,
    ) -> None:
        """Prepare, and start nothing yet.

        Args:
            wait_disconnect: Waits until the client has left. Called once.
            is_complete: Tells whether all of the response was handed to the server.
                Then a disconnect is no abort, and must not cancel the last send.
            lease: Whose thread the request's sync code runs in.
            patience: For how many seconds to wait for sync code that runs on when the
                server cancels the request, as it does at its shutdown.
        """
        self._wait_disconnect = wait_disconnect
        self._is_complete = is_complete
        self._lease = lease
        self._patience = patience
        self._answering = True
        self._error: Exception | None = None
        #: What a disconnect cancels.
        self._scope = trio.CancelScope()
        #: Where the watcher waits on after the server has cancelled the request.
        self._last_wait = trio.CancelScope(shield=True)

    async def run(self, respond: Callable[[], Awaitable[None]]) -> None:
        """Run ``respond()`` to its end, or until a disconnect has cut it short.

        Raises:
            Exception: what ``respond`` raised, or else ``wait_disconnect``.
            trio.Cancelled: the server has cancelled the request.
        """

        async def respond_in_scope() -> None:
            with self._scope:
                await respond()

        def stop_watching() -> None:
            self._answering = False
            self._last_wait.cancel()

        await run_beside(self._watch, respond_in_scope, stop=stop_watching)
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            # Its traceback holds this frame: leave no cycle behind.
            del error

    async def _watch(self) -> None:
        try:
            try:
                await self._wait_disconnect()
            except Exception as error:  # noqa: BLE001 - run() raises it
                self._error = error
                self._scope.cancel()
            else:
                if not self._is_complete():
                    self._scope.cancel()
            await trio.sleep_forever()
        except trio.Cancelled:
            if self._answering:
                with self._last_wait:
                    await trio.sleep(self._patience)
                    self._lease.stop_waiting()
            raise
