"""The six rules of the relay. Chance is the longest wait here, unless a test says otherwise."""

from __future__ import annotations

import random
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from connectors.errors import Exit, Stop
from connectors.records import (
    Busy,
    Failed,
    Image,
    Outcome,
    Prediction,
    Record,
    Rejection,
    Reopened,
    Request,
    Skipped,
)
from connectors.relay import Arrival, Relay
from tests.connectors.policies import policy as make_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from connectors.records import Answer, Settled

BLANK = Image(b"blank")
BAD = Rejection("not_an_image", "no")
REFUSED = Busy("refused")
FAILED = Failed("500: Worker died.", status=500)
FINAL = Failed("413: the request is too large", final=True, status=413)


def record(name: str, lane: Hashable | None = 0, value: bytes | None = b"") -> Record:
    return Record(name, value, None, (), 0, lane, None)


def images(*names: str, lane: Hashable | None = 0) -> list[Arrival]:
    return [(record(name, lane), Image(name.encode())) for name in names]


def rejected(*names: str) -> list[Arrival]:
    return [(record(name), BAD) for name in names]


def predictions(request: Request) -> list[Prediction]:
    return [Prediction({"image": image.data}) for image in request.images]


def longest(upper: float) -> float:
    return upper


def make(jitter: Callable[[float], float] = longest, **policy: Any) -> Relay:  # noqa: ANN401 - any field of Policy
    return Relay(make_policy(**policy), jitter, BLANK)


def sent(relay: Relay, now: float = 0.0) -> list[str]:
    return [names(request) for request in relay.requests(now)]


def names(request: Request) -> str:
    return " ".join(image.data.decode() for image in request.images)


def only(requests: Sequence[Request]) -> Request:
    (request,) = requests
    return request


def ids(settled: Iterable[Settled]) -> list[str]:
    return [one.record.id for one in settled]


def commit(relay: Relay, now: float) -> list[tuple[str, Outcome]]:
    settled = relay.settled(now)
    if settled:
        relay.committed(now)
    return [(one.record.id, one.outcome) for one in settled]


def ask(relay: Relay, answer: Answer, now: float) -> str:
    """Send the one thing that is due, answer it, and tell what it was."""
    request = only(relay.requests(now))
    relay.answer(request, answer, now)
    return names(request)


def serve(relay: Relay, now: float = 0.0) -> None:
    """Predict whatever is due."""
    for request in relay.requests(now):
        relay.answer(request, predictions(request), now)


def serve_all(relay: Relay, now: float) -> float:
    """Predict whatever is due until each record has its outcome; return when that was."""
    while relay.stats.oldest_since is not None:
        now = max(now, relay.wake_at(now))
        serve(relay, now)
    return now


def hear(relay: Relay, now: float, name: str = "blank") -> Request:
    """Answer the canary that is due."""
    canary = only(relay.requests(now))
    assert names(canary) == name
    assert canary.follows is None
    relay.answer(canary, [Prediction({})], now)
    return canary


def begin_trial(relay: Relay, now: float, name: str = "blank") -> Request:
    """Answer the canary that is due, and send what follows it at once."""
    canary = hear(relay, now, name)
    trial = only(relay.requests(now))
    assert trial.follows is canary
    return trial


def judge(relay: Relay, answer: Answer | None, now: float) -> str:
    """Answer a trial behind its canary, None: with predictions; tell whose it was."""
    trial = begin_trial(relay, now)
    relay.answer(trial, predictions(trial) if answer is None else answer, now)
    return names(trial)


def fail_canaries(relay: Relay, times: int, now: float) -> None:
    """Let so many canaries fail in a row, and answer the next."""
    for _ in range(times):
        assert ask(relay, FAILED, now) == "blank"
    hear(relay, now)


def count_trials(relay: Relay, now: float) -> int:
    """Let each trial fail until nothing is left; return how many that took."""
    for number in range(1, 20):
        judge(relay, FAILED, now)
        if not relay.stats.quarantined:
            return number
        hear(relay, now)
    pytest.fail("it is never rejected")


class TestPacking:
    def test_a_record_alone_travels_at_once(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        assert sent(relay) == ["a"]

    def test_what_has_gathered_travels_together_from_any_lane(self) -> None:
        relay = make(pack=3)
        relay.receive(images("a", "b") + images("c", "d", lane=1), 0.0)
        assert sent(relay) == ["a b c", "d"]

    def test_no_more_requests_are_out_than_may_be_in_flight(self) -> None:
        relay = make(pack=1, in_flight=2)
        relay.receive(images("a", "b", "c"), 0.0)
        first, _ = relay.requests(0.0)
        assert sent(relay) == []
        relay.answer(first, predictions(first), 0.0)
        assert sent(relay) == ["c"]

    def test_a_pack_always_takes_its_first_image(self) -> None:
        relay = make(pack_bytes=1)
        relay.receive(images("large", "larger"), 0.0)
        assert sent(relay) == ["large", "larger"]

    def test_a_pack_ends_before_the_image_that_would_exceed_its_bytes(self) -> None:
        relay = make(pack_bytes=4)
        relay.receive(images("aa", "bb", "c"), 0.0)
        assert sent(relay) == ["aa bb", "c"]


class TestWindow:
    def test_what_is_held_takes_room_until_it_is_committed(self) -> None:
        relay = make(window=3)
        relay.receive(images("a", "b"), 0.0)
        assert relay.capacity() == 1
        serve(relay)
        assert relay.capacity() == 1
        commit(relay, 0.0)
        assert relay.capacity() == 3

    def test_room_is_never_negative(self) -> None:
        relay = make(window=1)
        relay.receive(images("a", "b"), 0.0)
        assert relay.capacity() == 0

    def test_there_is_no_room_when_the_values_fill_the_window(self) -> None:
        relay = make(window_bytes=10)
        relay.receive([(record("a", value=b"12345"), BAD), (record("b", value=None), BAD)], 0.0)
        assert relay.capacity() > 0
        relay.receive([(record("c", value=b"12345"), BAD)], 0.0)
        assert relay.capacity() == 0
        commit(relay, 0.0)
        assert relay.capacity() > 0
        assert relay.stats.held_bytes == 0


class TestLanes:
    def test_outcomes_wait_for_their_elders_in_the_lane(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b", "c"), 0.0)
        a, b, c = relay.requests(0.0)
        relay.answer(c, predictions(c), 0.0)
        relay.answer(a, predictions(a), 0.0)
        assert ids(relay.settled(0.0)) == ["a"]
        relay.answer(b, predictions(b), 0.0)
        assert ids(relay.settled(0.0)) == ["a", "b", "c"]

    def test_lanes_do_not_wait_for_each_other(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a") + images("b", lane="other"), 0.0)
        _, b = relay.requests(0.0)
        relay.answer(b, predictions(b), 0.0)
        assert ids(relay.settled(0.0)) == ["b"]

    def test_without_a_lane_any_order_will_do(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b", lane=None), 0.0)
        _, b = relay.requests(0.0)
        relay.answer(b, predictions(b), 0.0)
        assert ids(relay.settled(0.0)) == ["b"]

    def test_nothing_is_left_of_a_lane_that_has_become_empty(self) -> None:
        relay = make()
        relay.receive(images("a", lane="a key") + images("b", lane="another key"), 0.0)
        serve(relay)
        assert relay._lanes._lanes == {}

    def test_what_decoding_settled_takes_its_place_in_the_lane_without_a_request(self) -> None:
        relay = make()
        relay.receive([*images("a"), *rejected("b"), (record("c"), Skipped())], 0.0)
        assert relay.settled(0.0) == []
        assert only(relay.requests(0.0)).images == (Image(b"a"),)
        relay.reset()
        relay.receive([*rejected("b"), (record("c"), Skipped())], 0.0)
        assert commit(relay, 0.0) == [("b", BAD), ("c", Skipped())]

    def test_each_image_gets_the_outcome_in_its_own_place(self) -> None:
        relay = make()
        relay.receive(images("a", "b", "c"), 0.0)
        good = Prediction({})
        relay.answer(only(relay.requests(0.0)), [good, BAD, good], 0.0)
        assert commit(relay, 0.0) == [("a", good), ("b", BAD), ("c", good)]

    def test_an_answer_of_another_length_is_not_accepted(self) -> None:
        relay = make()
        relay.receive(images("a", "b"), 0.0)
        with pytest.raises(ValueError, match="shorter"):
            relay.answer(only(relay.requests(0.0)), [BAD], 0.0)


class TestCommit:
    def test_the_first_commit_is_due_at_once(self) -> None:
        relay = make()
        relay.receive(rejected("a"), 5.0)
        assert relay.wake_at(5.0) <= 5.0
        assert ids(relay.settled(5.0)) == ["a"]

    def test_the_interval_counts_from_the_end_of_the_last_commit(self) -> None:
        relay = make(commit_interval=1.0)
        relay.receive(rejected("a"), 0.0)
        relay.settled(0.0)
        relay.committed(0.25)
        relay.receive(rejected("b"), 0.5)
        assert relay.settled(1.0) == []
        assert relay.wake_at(1.0) == 1.25
        assert ids(relay.settled(1.25)) == ["b"]

    def test_the_interval_is_never_shorter_than_the_duration(self) -> None:
        relay = make(commit_interval=0.1)
        relay.receive(rejected("a"), 0.0)
        relay.settled(0.0)
        relay.committed(2.0)
        relay.receive(rejected("b"), 2.0)
        assert relay.wake_at(2.0) == 4.0
        assert relay.stats.commits == 1
        assert relay.stats.commit_seconds == 2.0

    def test_a_full_window_that_waits_for_nothing_else_is_committed_at_once(self) -> None:
        relay = make(window=2, commit_interval=1.0)
        relay.receive(rejected("a"), 0.0)
        relay.settled(0.0)
        relay.committed(5.0)
        relay.receive([*rejected("b"), *images("c")], 5.0)
        request = only(relay.requests(5.0))
        assert relay.settled(5.0) == []
        assert relay.wake_at(5.0) == 10.0
        relay.answer(request, [Prediction({})], 6.0)
        assert relay.wake_at(6.0) == 6.0
        assert ids(relay.settled(6.0)) == ["b", "c"]

    def test_what_settles_during_a_commit_is_left_for_the_next(self) -> None:
        relay = make(commit_interval=0.0)
        relay.receive(rejected("a"), 0.0)
        relay.settled(0.0)
        relay.receive(rejected("b"), 0.0)
        relay.committed(0.0)
        assert relay.stats.held == 1
        assert ids(relay.settled(0.0)) == ["b"]


class TestBusy:
    def test_the_images_return_to_the_head_of_the_queue(self) -> None:
        relay = make(pack=2, in_flight=1)
        relay.receive(images("a", "b", "c"), 0.0)
        assert ask(relay, REFUSED, 0.0) == "a b"
        assert sent(relay, 1.0) == ["a b"]

    def test_the_whole_relay_waits_and_twice_as_long_each_time(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        now, waits = 0.0, []
        for _ in range(8):
            ask(relay, REFUSED, now)
            waits.append(round(relay.wake_at(now) - now, 6))
            assert relay.requests((now + relay.wake_at(now)) / 2) == []
            now = relay.wake_at(now)
        assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]

    def test_requests_that_are_refused_together_lengthen_the_wait_once(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b", "c"), 0.0)
        for request in relay.requests(0.0):
            relay.answer(request, REFUSED, 0.0)
        assert relay.wake_at(0.0) == 0.05

    def test_retry_after_is_obeyed(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b"), 0.0)
        a, b = relay.requests(0.0)
        relay.answer(a, Busy("queue full", after=7.0), 0.0)
        relay.answer(b, Busy("queue full", after=3.0), 0.0)
        assert relay.wake_at(0.0) == 7.0

    @pytest.mark.parametrize("served", [[Prediction({})], FAILED])
    def test_once_somebody_is_heard_the_next_wait_is_short_again(self, served: Answer) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b"), 0.0)
        _, b = relay.requests(0.0)
        for now in (0.0, 1.0, 2.0):
            relay.answer(_, REFUSED, now)
            _ = next(iter(relay.requests(now + 1.0)), _)
        assert relay.stats.busy_since == 0.0
        assert relay.stats.busy_detail == "refused"
        relay.answer(b, served, 3.0)
        assert relay.stats.busy_since is None
        relay.answer(_, REFUSED, 3.0)
        assert relay._backoff.until == 3.05

    def test_hours_of_busy_reject_nothing(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        now = 0.0
        for _ in range(2000):
            ask(relay, REFUSED, now)
            now = relay.wake_at(now)
        assert now > 3600
        now = serve_all(relay, now)
        assert ids(relay.settled(now)) == ["a"]
        assert relay.stats.retries == {"busy": 2000}


class TestSuspects:
    def test_a_failed_pack_is_tried_in_halves_one_at_a_time(self) -> None:
        relay = make()
        relay.receive(images("a", "b", "c"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        half = begin_trial(relay, 2.0)
        assert names(half) == "a b"
        assert relay.requests(2.0) == []
        relay.answer(half, predictions(half), 2.0)
        assert names(begin_trial(relay, 2.0, "b")) == "c"

    def test_nothing_goes_out_beside_the_last_trial(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        trial = begin_trial(relay, 2.0)
        relay.receive(images("b"), 2.0)
        assert sent(relay, 2.0) == []
        assert relay.wake_at(2.0) == inf
        relay.answer(trial, predictions(trial), 2.0)
        assert sent(relay, 2.0) == ["b"]

    def test_the_halves_of_a_failed_trial_come_before_the_other_suspects(self) -> None:
        relay = make()
        relay.receive(images("a", "b", "c", "d"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        assert judge(relay, FAILED, 2.0) == "a b"
        hear(relay, 2.0)
        tried = [judge(relay, [BAD] * count, 4.0) for count in (1, 1, 2)]
        assert tried == ["a", "b", "c d"]
        assert ids(relay.settled(4.0)) == ["a", "b", "c", "d"]

    def test_a_trial_waits_and_meanwhile_the_others_go_on(self) -> None:
        relay = make(pack=1, in_flight=2)
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        assert relay.wake_at(0.0) == 0.0
        hear(relay, 0.0)
        assert relay.wake_at(0.0) == 2.0
        relay.receive(images("b", lane=1), 1.0)
        assert sent(relay, 1.0) == ["b"]

    def test_a_trial_that_is_due_waits_until_nothing_else_is_out(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b", "c"), 0.0)
        a, b, c = relay.requests(0.0)
        relay.answer(a, FAILED, 0.0)
        relay.receive(images("d"), 2.0)
        assert sent(relay, 2.0) == []
        relay.answer(b, [BAD], 2.0)
        assert sent(relay, 2.0) == []
        relay.answer(c, [BAD], 2.0)
        hear(relay, 2.0)
        assert sent(relay, 2.0) == ["d"]
        assert sent(relay, 4.0) == []

    def test_failing_traffic_does_not_put_off_a_trial_that_is_to_come(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        relay.receive(images("b"), 1.0)
        ask(relay, FAILED, 1.5)
        assert names(begin_trial(relay, 2.0)) == "a"

    def test_traffic_that_fails_when_a_trial_is_due_makes_it_wait_anew(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        relay.receive(images("b"), 1.0)
        b = only(relay.requests(1.0))
        relay.answer(b, FAILED, 5.0)
        hear(relay, 5.0)
        assert sent(relay, 6.9) == []
        assert names(begin_trial(relay, 7.0)) == "a"

    def test_a_trial_that_is_refused_is_repeated(self) -> None:
        relay = make()
        relay.receive(images("a", "b", "c", "d"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        assert judge(relay, REFUSED, 2.0) == "a b"
        hear(relay, 2.0)
        assert sent(relay, 3.9) == []
        assert names(begin_trial(relay, 4.0)) == "a b"

    def test_the_wait_for_a_trial_doubles_with_each_one_that_the_record_failed(self) -> None:
        relay = make(tries=100)
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        now, waits = 2.0, []
        for _ in range(7):
            judge(relay, FAILED, now)
            hear(relay, now)
            waits.append(relay.wake_at(now) - now)
            now = relay.wake_at(now)
        assert waits == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


class TestWitness:
    def suspect(self, relay: Relay, name: str = "blank") -> float:
        """One record fails in traffic; its trial is due at the time returned."""
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0, name)
        return 2.0

    def test_before_a_record_is_tried_alone_the_witness_goes_out_alone(self) -> None:
        relay = make()
        now = self.suspect(relay)
        relay.receive(images("b"), now)
        assert sent(relay, now) == ["blank"]
        assert sent(relay, now) == []

    def test_a_witness_that_is_refused_is_asked_again_until_it_is_heard(self) -> None:
        relay = make()
        now = self.suspect(relay)
        relay.receive(images("b"), now)
        for _ in range(3):
            assert ask(relay, REFUSED, now) == "blank"
            now = relay.wake_at(now)
        assert ask(relay, [BAD], now) == "blank"
        assert sent(relay, now) == ["b"]

    def test_a_record_is_condemned_by_three_failures_behind_an_answered_witness(self) -> None:
        relay = make()
        now = self.suspect(relay)
        judge(relay, FAILED, now)
        for _ in range(2):
            hear(relay, now)
            now = relay.wake_at(now)
            assert relay.settled(now) == []
            assert judge(relay, FAILED, now) == "a"
        expected = Rejection("failed", "500: Worker died.", status=500, attempts=3)
        assert commit(relay, now) == [("a", expected)]
        assert relay.stats.retries == {"failed": 1, "trial": 3}

    def test_what_failures_have_counted_survives_the_restart_of_a_worker(self) -> None:
        relay = make(tries=3)
        now = self.suspect(relay)
        for _ in range(3):
            assert commit(relay, now) == []
            assert judge(relay, FAILED, now) == "a"
            for _ in range(5):
                now = max(now, relay.wake_at(now))
                if relay.stats.quarantined:
                    assert ask(relay, REFUSED, now) == "blank"
            if relay.stats.quarantined:
                hear(relay, max(now, relay.wake_at(now)))
                now = relay.wake_at(now)
        assert [name for name, _ in commit(relay, now)] == ["a"]

    def test_when_the_witness_fails_nothing_counts_and_the_suspect_goes_to_the_back(self) -> None:
        relay = make(pack=1, tries=1)
        relay.receive(images("a", "b"), 0.0)
        for request in relay.requests(0.0):
            relay.answer(request, FAILED, 0.0)
        now, tried = 0.0, []
        for _ in range(4):
            assert ask(relay, FAILED, now) == "blank"
            tried.append(relay._quarantine.quarantined[-1][0].slot.record.id)
            now = relay.wake_at(now)
        assert tried == ["a", "b", "a", "b"]
        assert relay.settled(now) == []
        assert relay.stats.retries["witness"] == 4

    @pytest.mark.parametrize(("times", "in_a_row", "more"), [(0, 0, 4), (1, 8, 5), (8, 1, 6)])
    def test_canaries_that_fail_take_back_a_quarter_of_a_failure_once_in_a_row(
        self, times: int, in_a_row: int, more: int
    ) -> None:
        relay = make(lambda _: 0.0, tries=3)
        now = self.suspect(relay)
        for _ in range(6):  # take back all that refusals may, so that failures are left alone
            fail_canaries(relay, 1, now)
        for _ in range(2):
            judge(relay, FAILED, now)
            hear(relay, now)
        for _ in range(times):
            fail_canaries(relay, in_a_row, now)
        assert count_trials(relay, now) == more

    def test_the_same_suspect_stays_in_front_while_its_tries_count(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b"), 0.0)
        for request in relay.requests(0.0):
            relay.answer(request, FAILED, 0.0)
        hear(relay, 0.0)
        judge(relay, FAILED, 2.0)
        hear(relay, 2.0)
        assert names(begin_trial(relay, 6.0)) == "a"

    def test_the_last_image_that_was_predicted_is_the_next_witness(self) -> None:
        relay = make()
        relay.receive(images("good", "better", "bad", lane=None), 0.0)
        ask(relay, [Prediction({}), Prediction({}), BAD], 0.0)
        now = self.suspect(relay, "better")
        assert sent(relay, now) == ["better"]

    def test_the_witness_survives_a_reset(self) -> None:
        relay = make()
        relay.receive(images("good"), 0.0)
        serve(relay)
        relay.reset()
        now = self.suspect(relay, "good")
        assert sent(relay, now) == ["good"]

    def test_a_witness_of_which_nobody_takes_heed_any_more_is_stale(self) -> None:
        relay = make(tries=1)
        now = self.suspect(relay)
        canary = only(relay.requests(now))
        relay.reset()
        relay.answer(canary, [Prediction({})], now)
        assert relay.stats.stale == 1
        assert relay.requests(now) == []
        assert relay.settled(now) == []

    @pytest.mark.parametrize("tries", [1, 3])
    def test_what_fails_over_another_connection_does_not_count(self, tries: int) -> None:
        relay = make(lambda _: 0.0, tries=tries)
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        for _ in range(5):
            assert judge(relay, REOPENED, 1.0) == "a"
        assert commit(relay, 1.0) == []
        assert relay.stats.retries == {"failed": 1, "trial": 5}
        assert judge(relay, None, 1.0) == "a"
        assert [name for name, _ in commit(relay, 1.0)] == ["a"]

    def test_a_pack_that_fails_over_another_connection_stays_whole_and_goes_to_the_back(
        self,
    ) -> None:
        relay = make(lambda _: 0.0)
        relay.receive(images("a", "b", "c", "d"), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        assert [judge(relay, REOPENED, 1.0) for _ in range(3)] == ["a b", "c d", "a b"]


REOPENED = Reopened("refused elsewhere")


def doubted(*names: str, **policy: Any) -> Relay:  # noqa: ANN401 - any field of Policy
    """Hold a pack that has been refused for longer than `doubt_after`, at second 100."""
    relay = make(lambda _: 0.0, pack=64, doubt_after=60.0, **policy)
    relay.receive(images(*names, lane=None), 0.0)
    asked = " ".join(names)
    assert [ask(relay, REFUSED, now) for now in (0.0, 59.0, 100.0)] == [asked] * 3
    hear(relay, 100.0)
    return relay


class TestDoubt:
    @pytest.mark.parametrize("tries", [1, 2, 3])
    def test_a_record_that_is_refused_while_canaries_are_answered_is_rejected(
        self, tries: int
    ) -> None:
        relay = doubted("a", tries=tries)
        for attempt in range(tries):
            assert commit(relay, 100.0) == []
            assert judge(relay, REFUSED, 100.0 + attempt) == "a"
            if attempt + 1 < tries:
                hear(relay, 100.0 + attempt)
        rejection = Rejection("failed", "refused", None, tries)
        assert commit(relay, 200.0) == [("a", rejection)]

    def test_a_pack_that_is_refused_is_cut_until_the_one_is_found(self) -> None:
        relay = doubted("a", "b", "c", "d", tries=1)
        assert judge(relay, [BAD, BAD], 101.0) == "a b"
        assert judge(relay, REFUSED, 101.0) == "c d"
        hear(relay, 101.0)
        assert judge(relay, REFUSED, 101.0) == "c"
        hear(relay, 101.0)
        assert judge(relay, [BAD], 101.0) == "d"
        reasons = {n: one.reason for n, one in commit(relay, 200.0) if isinstance(one, Rejection)}
        assert [name for name in "abcd" if reasons[name] == "failed"] == ["c"]

    @pytest.mark.parametrize("answer", [REFUSED, FAILED])
    def test_two_canaries_that_are_not_answered_take_back_one_refusal(self, answer: Answer) -> None:
        relay = doubted("a", tries=2)
        for now in (110.0, 120.0, 130.0):
            judge(relay, REFUSED, now)
            hear(relay, now)
            for later in (now + 1.0, now + 2.0):
                assert ask(relay, answer, later) == "blank"
                hear(relay, later + 0.5)
            assert commit(relay, now) == []
        judge(relay, REFUSED, 140.0)
        hear(relay, 140.0)
        judge(relay, REFUSED, 141.0)
        assert [name for name, _ in commit(relay, 142.0)] == ["a"]

    def test_an_outage_of_hours_takes_back_no_more_than_the_tries(self) -> None:
        relay = doubted("a", tries=2)
        for now in range(100, 1000):
            assert ask(relay, REFUSED, float(now)) == "blank"
            hear(relay, now + 0.5)
        for _ in range(4):
            assert commit(relay, 1000.0) == []
            judge(relay, REFUSED, 1000.0)
            if relay.stats.quarantined:
                hear(relay, 1000.0)
        assert [name for name, _ in commit(relay, 1000.0)] == ["a"]

    def test_what_is_refused_over_another_connection_does_not_count(self) -> None:
        relay = doubted("a", tries=1)
        for attempt in range(5):
            judge(relay, REOPENED, 101.0 + attempt)
        assert commit(relay, 200.0) == []
        judge(relay, None, 200.0)
        assert commit(relay, 201.0) == [("a", Prediction({"image": b"a"}))]

    def test_a_doubted_record_that_fails_is_tried_as_one_that_failed(self) -> None:
        relay = doubted("a", tries=1)
        judge(relay, FAILED, 101.0)
        ((_, outcome),) = commit(relay, 200.0)
        assert outcome == Rejection("failed", FAILED.detail, 500, 1)

    def test_a_suspect_of_a_failure_that_is_refused_for_long_is_doubted_too(self) -> None:
        relay = make(lambda _: 0.0, tries=1, doubt_after=60.0)
        relay.receive(images("a", lane=None), 0.0)
        assert ask(relay, FAILED, 0.0) == "a"
        for now in (1.0, 30.0, 60.0):
            hear(relay, now)
            assert judge(relay, REFUSED, now) == "a"
            assert commit(relay, now) == []
        hear(relay, 61.0)
        judge(relay, REFUSED, 61.0)
        assert [name for name, _ in commit(relay, 63.0)] == ["a"]

    def test_a_refused_trial_lets_the_others_go_on(self) -> None:
        relay = make(doubt_after=60.0)
        relay.receive(images("a", lane=None), 0.0)
        ask(relay, FAILED, 0.0)
        hear(relay, 0.0)
        judge(relay, REFUSED, 2.0)
        hear(relay, 2.0)
        relay.receive(images("b", lane=None), 2.0)
        assert sent(relay, 2.0) == ["b"]

    def test_while_a_canary_and_its_suspect_are_out_nothing_else_is(self) -> None:
        relay = doubted("a", in_flight=4)
        relay.receive(images("b", lane=None), 100.0)
        canary = only(relay.requests(101.0))
        assert sent(relay, 101.0) == []
        relay.answer(canary, [Prediction({})], 101.0)
        assert sent(relay, 101.0) == ["a"]
        assert sent(relay, 101.0) == []


class TestFinal:
    def test_a_record_alone_is_rejected_without_a_witness(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        ask(relay, FINAL, 0.0)
        expected = Rejection("rejected", FINAL.detail, status=413, attempts=1)
        assert commit(relay, 0.0) == [("a", expected)]

    def test_a_pack_is_cut_until_the_record_is_alone(self) -> None:
        relay = make()
        relay.receive(images("a", "b", "c"), 0.0)
        ask(relay, FINAL, 0.0)
        hear(relay, 0.0)
        assert judge(relay, FINAL, 2.0) == "a b"
        hear(relay, 2.0)
        assert judge(relay, FINAL, 4.0) == "a"
        found = commit(relay, serve_all(relay, 4.0))
        assert [name for name, outcome in found if isinstance(outcome, Rejection)] == ["a"]
        assert len(found) == 3


class TestDeadLetterLimit:
    def test_too_many_in_a_row_stop_the_daemon_before_they_are_committed(self) -> None:
        relay = make(max_consecutive_rejections=3, commit_interval=0.0)
        relay.receive(rejected("a", "b"), 0.0)
        commit(relay, 0.0)
        relay.receive(rejected("c"), 0.0)
        with pytest.raises(Stop, match=r"3 records in a row .* c, as not_an_image \(no\)") as stop:
            relay.settled(0.0)
        assert stop.value.code is Exit.GIVEN_UP
        assert relay.stats.rejected == {"not_an_image": 2}

    def test_a_prediction_ends_the_row_and_a_skipped_record_does_not(self) -> None:
        relay = make(max_consecutive_rejections=3, commit_interval=0.0)
        relay.receive(rejected("a", "b"), 0.0)
        relay.receive(images("c"), 0.0)
        relay.receive([*rejected("d", "e"), (record("f"), Skipped())], 0.0)
        serve(relay)
        assert len(commit(relay, 0.0)) == 6
        relay.receive(rejected("g"), 0.0)
        with pytest.raises(Stop):
            relay.settled(0.0)

    def test_the_share_counts_from_its_least_number_on(self) -> None:
        relay = make(min_rejections=4, commit_interval=0.0)
        for number in range(3):
            relay.receive([*rejected(f"bad {number}"), *images(f"good {number}")], 0.0)
            serve(relay)
            assert len(commit(relay, 0.0)) == 2
        relay.receive(rejected("one more"), 0.0)
        with pytest.raises(Stop, match=r"4 of 7 records .* one more"):
            relay.settled(0.0)

    def test_below_the_share_any_number_may_be_rejected(self) -> None:
        relay = make(min_rejections=4, rejection_window=30, commit_interval=0.0)
        for number in range(100):
            relay.receive([*images(f"a {number}", f"b {number}"), *rejected(f"c {number}")], 0.0)
            serve(relay)
            assert len(commit(relay, 0.0)) == 3
        assert relay.stats.rejected.total() == 100

    def test_only_the_last_outcomes_are_remembered(self) -> None:
        relay = make(min_rejections=3, rejection_window=4)
        for arrivals in (rejected("a", "b"), images("c", "d", "e", "f"), rejected("g", "h")):
            relay.receive(arrivals, 0.0)
        serve(relay)
        assert len(commit(relay, 0.0)) == 8

    def test_skipped_records_are_not_counted_among_the_outcomes(self) -> None:
        relay = make(min_rejections=2, commit_interval=0.0)
        skipped = [(record(str(number)), Skipped()) for number in range(10)]
        relay.receive([*skipped, *rejected("a", "b")], 0.0)
        with pytest.raises(Stop, match="2 of 2 records"):
            relay.settled(0.0)

    def test_the_outcomes_of_an_aborted_commit_are_not_counted_twice(self) -> None:
        relay = make(max_consecutive_rejections=3)
        for _ in range(5):
            relay.receive(rejected("a", "b"), 0.0)
            assert ids(relay.settled(0.0)) == ["a", "b"]
            relay.reset()
        assert relay.stats.rejected == {}

    def test_the_history_survives_a_reset(self) -> None:
        relay = make(max_consecutive_rejections=3, commit_interval=0.0)
        relay.receive(rejected("a", "b"), 0.0)
        commit(relay, 0.0)
        relay.reset()
        relay.receive(rejected("c"), 0.0)
        with pytest.raises(Stop):
            relay.settled(0.0)


class TestReset:
    def test_nothing_is_held_and_the_same_records_may_come_again(self) -> None:
        relay = make(pack=1, in_flight=2)
        relay.receive([*rejected("a"), *images("b", "c", "d")], 0.0)
        relay.requests(0.0)
        relay.reset()
        assert relay.stats.held == relay.stats.held_bytes == relay.stats.waiting == 0
        assert relay.settled(0.0) == []
        assert relay.capacity() == make_policy().window
        relay.receive(rejected("a"), 1.0)
        assert ids(relay.settled(1.0)) == ["a"]

    def test_a_forgotten_request_keeps_its_place_until_it_is_answered(self) -> None:
        relay = make(in_flight=1)
        relay.receive(images("a"), 0.0)
        forgotten = only(relay.requests(0.0))
        relay.reset()
        relay.receive(images("a"), 0.0)
        assert sent(relay) == []
        assert relay.stats.out == 1
        assert relay.wake_at(0.0) == inf
        relay.answer(forgotten, predictions(forgotten), 0.0)
        assert relay.settled(0.0) == []
        assert relay.stats.stale == 1
        assert sent(relay) == ["a"]

    @pytest.mark.parametrize("late", [REFUSED, FAILED, [BAD]])
    def test_the_answer_to_a_forgotten_request_says_nothing(self, late: Answer) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        forgotten = only(relay.requests(0.0))
        relay.reset()
        relay.answer(forgotten, late, 0.0)
        assert relay.wake_at(0.0) == inf
        assert relay.stats.retries == {}

    def test_a_trial_waits_for_forgotten_requests_too(self) -> None:
        relay = make()
        relay.receive(images("old"), 0.0)
        forgotten = only(relay.requests(0.0))
        relay.reset()
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        assert sent(relay, 3.0) == []
        assert relay.wake_at(3.0) == inf
        relay.answer(forgotten, FAILED, 3.0)
        hear(relay, 3.0)
        assert names(begin_trial(relay, 5.0)) == "a"

    def test_a_reset_in_the_middle_of_a_trial_forgets_the_suspects(self) -> None:
        relay = make()
        relay.receive(images("a", "b"), 0.0)
        ask(relay, FAILED, 0.0)
        trial = only(relay.requests(2.0))
        relay.reset()
        assert relay.stats.quarantined == 0
        relay.receive(images("a", "b"), 2.0)
        again = only(relay.requests(2.0))
        assert names(again) == "a b"
        relay.answer(trial, FAILED, 2.0)
        relay.answer(again, predictions(again), 2.0)
        assert ids(relay.settled(2.0)) == ["a", "b"]


class TestDrain:
    def test_nothing_more_is_taken_and_commits_are_due_at_once(self) -> None:
        relay = make(commit_interval=9.0)
        relay.receive(rejected("a"), 0.0)
        commit(relay, 0.0)
        relay.receive(rejected("b"), 0.0)
        relay.drain(20.0)
        assert relay.capacity() == 0
        assert relay.wake_at(0.0) == 0.0
        assert not relay.done(0.0)
        assert [name for name, _ in commit(relay, 0.0)] == ["b"]
        assert relay.done(0.0)

    def test_what_is_held_is_still_sent_and_answered(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        relay.drain(20.0)
        serve(relay)
        assert not relay.done(0.0)
        commit(relay, 0.0)
        assert relay.done(0.0)

    def test_it_never_ends_by_itself(self) -> None:
        assert not make().done(1e9)

    def test_the_deadline_binds_in_the_middle_of_a_trial(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        relay.drain(3.0)
        only(relay.requests(2.0))
        assert relay.wake_at(2.0) == 3.0
        assert not relay.done(2.9)
        assert relay.done(3.0)
        assert relay.stats.held == 1

    def test_a_trial_goes_on_while_draining(self) -> None:
        relay = make()
        relay.receive(images("a", "b"), 0.0)
        ask(relay, FAILED, 0.0)
        relay.drain(20.0)
        assert serve_all(relay, 0.0) == 2.0
        assert [name for name, _ in commit(relay, 2.0)] == ["a", "b"]
        assert relay.done(2.0)

    def test_a_reset_while_draining_ends_it(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        relay.requests(0.0)
        relay.drain(20.0)
        relay.reset()
        assert relay.done(0.0)


class TestWakeAt:
    def test_an_idle_relay_sleeps_until_a_record_comes(self) -> None:
        assert make().wake_at(0.0) == inf

    def test_waiting_records_are_sent_at_once(self) -> None:
        relay = make()
        relay.receive(images("a"), 7.0)
        assert relay.wake_at(7.0) == 7.0

    def test_when_all_places_are_taken_only_an_answer_helps(self) -> None:
        relay = make(pack=1, in_flight=1)
        relay.receive(images("a", "b"), 0.0)
        relay.requests(0.0)
        assert relay.wake_at(0.0) == inf

    def test_it_skips_past_a_trial_that_is_due_while_requests_are_out(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a", "b"), 0.0)
        a, b = relay.requests(0.0)
        relay.answer(a, FAILED, 0.0)
        relay.answer(b, [BAD], 0.0)
        hear(relay, 0.0)
        relay.receive(images("c", "d"), 0.0)
        relay.requests(0.0)
        relay.receive(images("e"), 0.0)
        assert relay.wake_at(0.0) == 0.0
        assert relay.wake_at(1.0) == 1.0
        assert relay.wake_at(2.0) == inf

    def test_a_busy_service_puts_off_a_trial(self) -> None:
        relay = make()
        relay.receive(images("a"), 0.0)
        ask(relay, FAILED, 0.0)
        ask(relay, Busy("restarting", after=9.0), 2.0)
        assert relay.wake_at(2.0) == 11.0


class TestTally:
    def test_it_is_replaced_and_never_changed(self) -> None:
        relay = make()
        before = relay.stats
        relay.receive(images("a"), 0.0)
        ask(relay, REFUSED, 0.0)
        assert before.received == before.held == 0
        assert before.packs == before.retries == {}

    def test_it_counts_what_was_committed(self) -> None:
        relay = make(pack=2)
        relay.receive([*images("a", "b", "c"), *rejected("d"), (record("e"), Skipped())], 0.0)
        serve(relay)
        assert relay.stats.predicted == relay.stats.skipped == 0
        commit(relay, 0.0)
        stats = relay.stats
        assert (stats.received, stats.predicted, stats.skipped) == (5, 3, 1)
        assert stats.rejected == {"not_an_image": 1}
        assert stats.packs == {2: 1, 1: 1}

    def test_it_knows_since_when_the_oldest_record_has_no_outcome(self) -> None:
        relay = make(pack=1)
        relay.receive(images("a"), 1.0)
        relay.receive(images("b"), 2.0)
        assert relay.stats.oldest_since == 1.0
        a, b = relay.requests(2.0)
        relay.answer(a, predictions(a), 3.0)
        assert relay.stats.oldest_since == 2.0
        relay.answer(b, predictions(b), 3.0)
        assert relay.stats.oldest_since is None


class Worker:
    """One worker, as TorchServe runs it: what waits for it is joined into one batch and shares
    its fate. An image whose name begins with "killer" ends it, and it is away for 5 s."""

    def __init__(self, *, refuses: bool, up: Callable[[float], bool] = lambda _: True) -> None:
        self.refuses = refuses
        self.up = up
        self.ready_at = 0.0
        self.queue: list[tuple[Relay, Request]] = []
        self.answers: deque[tuple[Relay, Request, Answer]] = deque()

    def take(self, relay: Relay, request: Request, now: float) -> None:
        if not self.up(now):
            self.answers.append((relay, request, FAILED))
        elif self.refuses and now < self.ready_at - 1.0:  # the last second of a restart lets in
            self.answers.append((relay, request, REFUSED))
        else:
            self.queue.append((relay, request))

    def work(self, now: float) -> None:
        if now < self.ready_at:
            return
        batch, self.queue = self.queue, []
        dies = any("killer" in names(request) for _, request in batch)
        self.ready_at = now + (5.0 if dies else 0.02)
        for relay, request in batch:
            self.answers.append((relay, request, FAILED if dies else predictions(request)))


def outcomes(
    relays: Sequence[Relay], worker: Worker, starts: Sequence[float] = (0.0, 0.0)
) -> dict[str, Outcome]:
    """Run in virtual time, from alarm to alarm, until nothing is held."""
    found: dict[str, Outcome] = {}
    now = 0.0
    for _ in range(10_000):
        while worker.answers:
            relay, request, answer = worker.answers.popleft()
            relay.answer(request, answer, now)
        for relay, start in zip(relays, starts, strict=False):
            for request in relay.requests(now) if now >= start else ():
                worker.take(relay, request, now)
            fresh = dict(commit(relay, now))
            assert not found.keys() & fresh.keys()
            found |= fresh
        if not any(relay.stats.held for relay in relays):
            return found
        worker.work(now)
        alarms = [max(r.wake_at(now), start) for r, start in zip(relays, starts, strict=False)]
        if not worker.answers:
            now = min([*alarms, worker.ready_at if worker.queue else inf])
    pytest.fail("it does not end, or it spins")


def chance(seed: int) -> Callable[[float], float]:
    dice = random.Random(seed)
    return lambda upper: dice.uniform(0.0, upper)


def condemned(found: dict[str, Outcome]) -> list[str]:
    return sorted(name for name, outcome in found.items() if isinstance(outcome, Rejection))


SEEDS = pytest.mark.parametrize("seed", range(5))
REFUSING = pytest.mark.parametrize("refuses", [True, False])


class TestStories:
    """What broke earlier versions."""

    @SEEDS
    @REFUSING
    def test_a_killer_as_the_very_first_record_with_pack_1(
        self, seed: int, *, refuses: bool
    ) -> None:
        relay = make(chance(seed), pack=1)
        relay.receive(images("killer", "a", "b", "c", "d", "e"), 0.0)
        found = outcomes([relay], Worker(refuses=refuses))
        assert condemned(found) == ["killer"]
        assert list(found) == ["killer", "a", "b", "c", "d", "e"]

    @SEEDS
    def test_the_only_worker_refuses_while_it_restarts(self, seed: int) -> None:
        relay = make(chance(seed), pack=8)
        crowd = [f"good {number}" for number in range(30)]
        relay.receive(images(*crowd[:20], "killer", *crowd[20:]), 0.0)
        assert condemned(outcomes([relay], Worker(refuses=True))) == ["killer"]

    @SEEDS
    @REFUSING
    @pytest.mark.parametrize("delay", [0.0, 1.0], ids=["in step", "in antiphase"])
    def test_two_relays_at_one_worker_condemn_only_the_killer(
        self, seed: int, delay: float, *, refuses: bool
    ) -> None:
        one, other = make(chance(seed), pack=2), make(chance(seed + 100), pack=2)
        one.receive(images("killer", "a", "b", "c"), 0.0)
        other.receive(images("d", "e", "f", "g"), 0.0)
        found = outcomes([one, other], Worker(refuses=refuses), (0.0, delay))
        assert condemned(found) == ["killer"]
        assert len(found) == 8

    def test_two_relays_that_share_their_chance_condemn_an_innocent(self) -> None:
        one, other = make(pack=1), make(pack=1)
        one.receive(images("killer"), 0.0)
        other.receive(images("innocent"), 0.0)
        assert condemned(outcomes([one, other], Worker(refuses=True))) == ["innocent", "killer"]

    @SEEDS
    def test_a_service_that_flaps_condemns_nobody(self, seed: int) -> None:
        relay = make(chance(seed), pack=4)
        relay.receive(images(*(str(number) for number in range(16))), 0.0)
        worker = Worker(refuses=False, up=lambda now: now > 300 or now % 14 > 7)
        assert condemned(outcomes([relay], worker)) == []

    def test_ten_minutes_of_nothing_but_failures_condemn_nobody(self) -> None:
        relay = make(chance(0), pack=4)
        relay.receive(images(*(str(number) for number in range(16))), 0.0)
        found = outcomes([relay], Worker(refuses=False, up=lambda now: now > 600))
        assert condemned(found) == []
        assert len(found) == 16

    def test_nothing_but_killers_for_a_while(self) -> None:
        relay = make(chance(0), pack=4)
        killers = [f"killer {number}" for number in range(4)]
        relay.receive(images(*killers, "a", "b", "c", "d"), 0.0)
        found = outcomes([relay], Worker(refuses=True))
        assert condemned(found) == killers
        assert list(found) == [*killers, "a", "b", "c", "d"]
