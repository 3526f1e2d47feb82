"""What is remembered of predictions, and how far they are from the baseline."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from connectors import description
from connectors.description import MAX_BYTES, BaselineReader
from connectors.drift import (
    LEAST_SHARE,
    MAX_CLASSES,
    MAX_LABEL_CHARACTERS,
    OTHER,
    WINDOW,
    Answer,
    Baseline,
    Predicted,
    measure_drift,
    parse_baseline,
)
from connectors.page_server import Page, serve_pages

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = {"name": "fmnist", "version": "1.0"}
VALIDATION = {
    "images": 5000,
    "class_mix": [0.5, 0.5],
    "mean_confidence": 0.9,
    "near_ties": 0.25,
    "near_tie_margin": 0.1,
}
CARD = {**MODEL, "classes": 2, "validation": VALIDATION}
DESCRIPTION = [{"modelName": "fmnist", "customizedMetadata": {"model": CARD, "labels": ["a", "b"]}}]
BASELINE = Baseline("fmnist 1.0", (0.5, 0.5), 0.9, 0.25, 0.1)


def body(number: int = 0, score: float = 0.9, second: float | None = 0.1) -> dict[str, Any]:
    top = [{"class": number, "label": f"class {number}", "score": score}]
    top += [] if second is None else [{"class": 9, "label": "class 9", "score": second}]
    return {**top[0], "top": top, "model": MODEL}


# classes


def test_a_service_cannot_choose_the_number_of_series() -> None:
    bodies = [{"label": f"class {number}"} for number in range(3 * MAX_CLASSES)]
    predicted = Predicted().followed_by(bodies).followed_by(bodies)
    assert len(predicted.classes) == MAX_CLASSES + 1
    assert predicted.classes["class 0"] == 2
    assert predicted.classes[OTHER] == 2 * 2 * MAX_CLASSES
    assert sum(predicted.classes.values()) == 2 * len(bodies)


def test_a_label_is_short_and_has_no_control_characters() -> None:
    predicted = Predicted().followed_by([{"label": "\x1b[2J" + "a" * 10_000}])
    assert list(predicted.classes) == ["\ufffd[2J" + "a" * (MAX_LABEL_CHARACTERS - 4)]


def test_an_answer_that_names_no_class_is_counted_nowhere() -> None:
    predicted = Predicted().followed_by([{"outputs": [0.5], "model": MODEL}])
    assert predicted == Predicted({}, "fmnist 1.0", ())


def test_the_model_is_named_with_its_version() -> None:
    assert Predicted().followed_by([body()]).model == "fmnist 1.0"


def test_what_was_remembered_before_is_not_changed() -> None:
    before = Predicted().followed_by([body()])
    before.followed_by([body()])
    assert before.classes == {"class 0": 1}
    assert before.recent == (Answer(0, 0.9, 0.8),)


# the window


def test_the_last_answers_are_kept_and_no_more() -> None:
    bodies = [body(number) for number in range(WINDOW + 5)]
    predicted = Predicted().followed_by(bodies[:7]).followed_by(bodies[7:])
    assert [answer.number for answer in predicted.recent] == list(range(5, WINDOW + 5))


def test_another_model_begins_anew() -> None:
    other = {**body(1), "model": {"name": "fmnist", "version": "2.0"}}
    predicted = Predicted().followed_by([body(), body(), other])
    assert predicted.model == "fmnist 2.0"
    assert [answer.number for answer in predicted.recent] == [1]
    assert sum(predicted.classes.values()) == 3


def recent(*bodies: dict[str, Any]) -> tuple[Answer, ...]:
    """Return a full window of these in turns."""
    return Predicted().followed_by(list(bodies) * (WINDOW // len(bodies))).recent


def test_answers_like_those_of_the_baseline_have_not_drifted() -> None:
    sure, tie = body(0, 0.95, 0.05), body(1, 0.75, 0.70)
    drift = measure_drift(recent(sure, body(1, 0.95, 0.05), body(0, 0.95, 0.05), tie), BASELINE)
    assert drift is not None
    assert drift == pytest.approx((0.0, 0.0, 0.0))


def test_too_few_answers_have_no_figures() -> None:
    assert measure_drift(recent(body())[:-1], BASELINE) is None


def test_each_figure_says_how_far_the_answers_are_from_the_baseline() -> None:
    drift = measure_drift(recent(body(0, 0.5, 0.45)), BASELINE)
    assert drift is not None
    assert drift.confidence == pytest.approx(-0.4)
    assert drift.near_ties == pytest.approx(0.75)
    assert drift.class_mix == pytest.approx(0.5 * 0.6931 + (0.5 - LEAST_SHARE) * 7.6009, rel=1e-3)


def test_a_margin_as_wide_as_that_of_a_near_tie_is_none() -> None:
    drift = measure_drift(recent(body(0, 0.75, 0.625)), replace(BASELINE, near_tie_margin=0.125))
    assert drift is not None
    assert drift.near_ties == -0.25


def test_classes_that_the_baseline_lacks_are_drift() -> None:
    usual = measure_drift(recent(body(0), body(1)), BASELINE)
    odd = measure_drift(recent(body(0), body(1), body(7), body(-1)), BASELINE)
    assert usual is not None
    assert odd is not None
    assert usual.class_mix == 0
    assert odd.class_mix > 1


def test_without_margins_near_ties_are_not_known() -> None:
    drift = measure_drift(recent(body(), body(1, 0.9, None)), BASELINE)
    assert drift is not None
    assert drift.near_ties is None
    assert drift.class_mix == 0


# the baseline


def test_the_baseline_is_read_from_the_description_and_from_the_file() -> None:
    assert parse_baseline(DESCRIPTION) == BASELINE
    assert parse_baseline(CARD) == BASELINE


ODD: list[Any] = [
    *(None, [], [None], "", 7, {}, [{}], {"customizedMetadata": []}),
    {"validation": None},
    {"validation": VALIDATION | {"class_mix": None}},
    {"validation": VALIDATION | {"class_mix": ["x"]}},
    {"validation": VALIDATION | {"class_mix": []}},
    {"validation": VALIDATION | {"class_mix": [0.0] * (WINDOW + 1)}},
    {"validation": VALIDATION | {"near_ties": {}}},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:40])
def test_a_description_without_a_baseline_is_refused_in_a_sentence(odd: object) -> None:
    with pytest.raises(ValueError, match=r"^(the model's description|its class_mix) has \w+"):
        parse_baseline(odd)


# where it comes from


class Server:
    """Describes a model, and counts how often it was asked."""

    def __init__(self, content: bytes, status: int = 200) -> None:
        self.page = Page(status, "application/json", content)
        self.asked = 0

    def __call__(self, _: str) -> Page:
        self.asked += 1
        return self.page


def read(server: Server, *models: str, wait: Callable[[], float] = lambda: 0.0) -> list[bool]:
    """Ask for the baselines of these, one after the other; say whether each was known at once."""
    with serve_pages("127.0.0.1", 0, {"/models/fmnist": server}) as port:
        url = f"http://127.0.0.1:{port}/models/fmnist?customized=true"
        reader = BaselineReader(url, None, wait)
        found = []
        for model in models:
            found.append(reader.get(model) is not None)
            if reader._thread:
                reader._thread.join()
    return found


def described() -> Server:
    return Server(json.dumps(DESCRIPTION).encode())


def test_the_server_is_asked_once_for_a_model_that_answers() -> None:
    server = described()
    assert read(server, "", "fmnist 1.0", "fmnist 1.0", "fmnist 1.0") == [False, False, True, True]
    assert server.asked == 1


def test_another_model_is_asked_for_but_not_at_each_scrape(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, seconds = described(), iter(range(1000))
    models = ["fmnist 2.0"] * 70
    assert not any(read(server, *models, wait=lambda: float(next(seconds))))
    assert server.asked == 2
    (line,) = caplog.records
    assert "(it describes fmnist 1.0, not fmnist 2.0): correct the model" in line.getMessage()


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        (Server(b"", 404), "404 Client Error"),
        (Server(b"{}"), "no figures of its validation images"),
        (Server(b"[" * 100_000), "no figures of its validation images"),
        (Server(b" " * (MAX_BYTES + 1)), f"more than {MAX_BYTES} bytes"),
        (Server(b'{"validation": "\x1b[2J"}'), "no figures"),
    ],
    ids=["404", "{}", "deep", "long", "control"],
)
def test_a_server_that_describes_nothing_is_a_warning(
    server: Server, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(server, "fmnist 1.0", "fmnist 1.0") == [False, False]
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert sentence in line.getMessage()
    assert line.getMessage().isprintable()


def test_a_scrape_does_not_wait_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "TIMEOUT", 0.2)
    reader = BaselineReader("http://192.0.2.1/models/fmnist", None, lambda: 0.0)
    assert reader.get("fmnist 1.0") is None
    thread = reader._thread
    assert reader.get("fmnist 1.0") is None
    assert reader._thread is thread
