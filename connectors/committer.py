"""The thread in which a commit runs beside the loop."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CommitThread:
    """A `Committer` with one thread, which is made at the first commit.

    `start`, `wait` and `close` are called by the thread of the loop.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "commit")
        self._commit: Future[None] = Future()

    def start(self, commit: Callable[[], None]) -> None:
        """See `Committer.start`."""
        self._commit = self._executor.submit(commit)

    def wait(self, timeout: float) -> bool:
        """See `Committer.wait`."""
        if timeout:  # the loop asks without, too, and that costs nothing
            wait((self._commit,), timeout)
        if not self._commit.done():
            return False
        self._commit.result()
        return True

    def close(self) -> None:
        """Return when the commit has ended: its broker is closed next, and must be idle then.

        The watchdog ends a process whose commit does not end.
        """
        self._executor.shutdown()
