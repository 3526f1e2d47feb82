"""The thread of commits: no test waits for anything but what it has caused itself."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from threading import Event, Thread, current_thread

import pytest

from connectors.committer import CommitThread
from connectors.errors import Rewound

TIMEOUT_S = 30.0


def wait_for(event: Event) -> None:
    event.wait(TIMEOUT_S)


def test_a_commit_runs_in_another_thread_and_has_ended_once_it_is_waited_for() -> None:
    threads: list[Thread] = []
    with closing(CommitThread()) as committer:
        for _ in range(2):
            committer.start(lambda: threads.append(current_thread()))
            assert committer.wait(TIMEOUT_S)
    assert len(threads) == 2
    assert len({*threads, current_thread()}) == 2


def test_a_commit_that_goes_on_has_not_ended() -> None:
    may_end = Event()
    with closing(CommitThread()) as committer:
        committer.start(partial(wait_for, may_end))
        assert not committer.wait(0.0)
        may_end.set()
        assert committer.wait(TIMEOUT_S)


@pytest.mark.parametrize("error", [Rewound("a rebalance"), TimeoutError("unexpected")])
def test_what_a_commit_raises_is_raised_where_it_is_waited_for(error: Exception) -> None:
    def fail() -> None:
        raise error

    with closing(CommitThread()) as committer:
        committer.start(fail)
        with pytest.raises(type(error)):
            committer.wait(TIMEOUT_S)


def test_closing_waits_for_the_end_of_a_commit() -> None:
    began, may_end, ended = Event(), Event(), Event()

    def commit() -> None:
        began.set()
        may_end.wait(TIMEOUT_S)
        ended.set()

    committer = CommitThread()
    committer.start(commit)
    assert began.wait(TIMEOUT_S)
    closer = Thread(target=committer.close)
    closer.start()
    assert not ended.is_set()
    may_end.set()
    closer.join(TIMEOUT_S)
    assert ended.is_set()
