"""The state of the live page: what it counts, what it keeps, and that all of it is bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connectors.commands import live_view
from connectors.commands.live_view import LiveView, StoredImage, read_answer
from connectors.drift import ALERT_ABOVE, WINDOW, Baseline
from connectors.images import CANARY, encode_png
from connectors.records import Progress, Record, Sighting

NOW = 1_700_000_000.0
MS = round(NOW * 1000)
TOP = [{"label": "Bag", "score": 0.75}, {"label": "Coat", "score": 0.25}]


def result(offset: int = 0, *headers: tuple[str, bytes], at: int = MS, **body: Any) -> Record:  # noqa: ANN401
    """A result of images/0/<offset>, published at `at`."""
    known = {"id": f"images/0/{offset}", "class": 8, "label": "Bag", "score": 0.75, "time": MS}
    document = {name: value for name, value in {**known, **body}.items() if value is not None}
    value = json.dumps(document).encode()
    return Record(f"out/0/{offset}", value, b"key", headers, at, "out/0", offset)


def dead_letter(
    offset: int = 0, value: bytes | None = b"no image", **ours: str | bytes | None
) -> Record:
    """A dead letter of images/1/<offset>."""
    known: dict[str, Any] = {"reason": "not_an_image", "detail": "It is none.", "status": "400"}
    found = {f"connector.{name}": text for name, text in {**known, **ours}.items() if text}
    origin = {"topic": "images", "partition": "1", "offset": str(offset)}
    found |= {f"__connect.errors.{name}": text for name, text in origin.items()}
    headers = tuple((n, t.encode() if isinstance(t, str) else t) for n, t in found.items())
    return Record(f"dead/0/{offset}", value, None, headers, MS, "dead/0", offset)


def make_view() -> LiveView:
    return LiveView({"group": "fmnist"}, NOW)


def see(view: LiveView, *records: Record, now: float = NOW, **how: bool) -> None:
    view.see([Sighting(record, **how) for record in records], now)


def page(view: LiveView, now: float = NOW) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(view.render(now))
    return found


def test_a_result_is_on_the_page_with_its_image() -> None:
    view = make_view()
    see(view, result(7, ("label", b"8"), at=MS + 250, top=TOP))
    assert view.take_picked() == ["images/0/7"]
    view.add_images({"images/0/7": CANARY.data})
    [entry] = page(view)["results"]
    assert (entry["label"], entry["score"], entry["latency"]) == ("Bag", 0.75, 0.25)
    assert (entry["id"], entry["name"], entry["expected"]) == ("images/0/7", "key", "8")
    assert (entry["top"], entry["image"]) == (TOP, True)
    assert view.images() == {entry["number"]: StoredImage("image/png", CANARY.data)}


def test_a_result_whose_record_is_gone_says_so() -> None:
    view = make_view()
    see(view, result())
    view.add_images({})
    [entry] = page(view)["results"]
    assert (entry["image"], entry["why"], view.images()) == (False, "there is no image", {})


def test_a_dead_letter_is_on_the_page_with_image_and_reason() -> None:
    view = make_view()
    see(view, dead_letter(3, CANARY.data), dead=True)
    [entry] = page(view)["dead_letters"]
    assert (entry["reason"], entry["detail"]) == ("not_an_image", "It is none.")
    assert (entry["id"], entry["status"], entry["image"]) == ("images/1/3", 400, True)
    assert page(view)["reasons"] == [["not_an_image", 1]]


def test_what_was_there_before_is_on_the_page_but_not_counted() -> None:
    view = make_view()
    see(view, result(), earlier=True)
    see(view, dead_letter(), dead=True, earlier=True)
    view.add_images({})
    found = page(view)
    assert (len(found["results"]), len(found["dead_letters"])) == (1, 1)
    assert found["counts"] == {"results": 0, "dead_letters": 0, "labelled": 0, "right": 0}
    assert found["reasons"] == []


def test_accuracy_is_of_those_with_a_label() -> None:
    view = make_view()
    see(view, result(0, ("label", b"8")), result(1, ("label", b"3")), result(2))
    counts = page(view)["counts"]
    assert (counts["results"], counts["labelled"], counts["right"]) == (3, 2, 1)


def test_rates_are_of_the_last_ten_seconds_by_partition() -> None:
    view = make_view()
    view.note_progress(Progress({"images/0": 40, "images/1": 0}, 2))
    page(view)
    see(view, *map(result, range(30)), now=NOW + 5)
    see(view, dead_letter(), now=NOW + 5, dead=True)
    found = page(view, NOW + 10)
    assert found["rate"] == 3.1
    assert found["partitions"] == [
        {"name": "images/0", "lag": 40, "rate": 3.0},
        {"name": "images/1", "lag": 0, "rate": 0.1},
    ]
    assert (found["lag"], found["members"]) == (40, 2)
    assert page(view, NOW + 21)["rate"] == 0


def test_progress_that_is_not_known_now_keeps_the_page() -> None:
    view = make_view()
    assert (page(view)["lag"], page(view)["members"]) == (None, None)
    view.note_progress(Progress({"images/0": 4}, 1))
    view.note_progress(None)
    view.note_trouble("Kafka is away")
    found = page(view)
    assert (found["lag"], found["members"], found["trouble"]) == (4, 1, "Kafka is away")


def test_the_curves_have_a_step_for_each_five_seconds() -> None:
    view = make_view()
    view.note_progress(Progress({"images/0": 9}, 1))
    see(view, result(0, at=MS + 100), result(1, at=MS + 300, label="Coat"))
    see(view, result(2, label="Coat"), now=NOW + 11)
    slots = page(view, NOW + 12)["slots"]
    assert [slot["results"] for slot in slots] == [2, 0, 1]
    assert [slot["lag"] for slot in slots] == [9, None, None]
    assert [slot["classes"] for slot in slots] == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert slots[0]["latency"] == {"median": 0.1, "p95": 0.3}
    assert slots[1]["latency"] is None
    assert page(view, NOW + 12)["classes"] == ["Bag", "Coat", "other"]


def test_the_curves_end_after_five_minutes_and_after_a_long_sleep() -> None:
    view = make_view()
    for second in range(0, 400, 5):
        page(view, NOW + second)
    assert len(page(view, NOW + 400)["slots"]) == live_view.SLOTS
    assert len(page(view, NOW + 100_000)["slots"]) == 1


@pytest.mark.parametrize("time", [None, "soon", -1, 1 << 60, MS + 5000])
def test_a_time_that_cannot_be_gives_no_latency_or_none_below_zero(time: object) -> None:
    view = make_view()
    see(view, result(time=time))
    assert page(view)["latency"] in (None, {"median": 0.0, "p95": 0.0})


# what strangers write


HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m" + "A" * 5000


def test_texts_of_strangers_are_cut_and_cleaned() -> None:
    view = make_view()
    strange = result(
        0, ("label", HOSTILE.encode()), id=HOSTILE, label=HOSTILE, top=[{"label": HOSTILE}]
    )
    see(view, strange._replace(key=HOSTILE.encode()))
    see(view, dead_letter(reason=HOSTILE, detail=HOSTILE, id=HOSTILE), dead=True)
    view.add_images({})
    found = page(view)
    texts = [*found["results"], *found["dead_letters"]]
    for text in [one for entry in texts for one in entry.values() if isinstance(one, str)]:
        assert len(text) <= live_view.MAX_DETAIL
        assert text.isprintable()
    assert found["results"][0]["label"].startswith("<img src=x onerror=alert(1)>\ufffd\ufffd[31m")


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            b"",
            b"{",
            b"[]",
            b"1",
            b"\xff\xfe",
            b'{"id": {"a": []}, "label": [1], "class": null}',
        ),
        *(b'{"top": "no list", "label": "x"}', b'{"top": [1, null, {}, 4, 5], "label": "x"}'),
        *(b'{"score": true, "time": true}', b'{"score": "1", "label": null}', b'{"score": 9e99}'),
        b'{"class": ' + b"9" * 4000 + b', "label": "x", "time": ' + b"9" * 4000 + b"}",
        b'{"label": "\\ud800", "outputs": [{"data": [1, 2]}]}',
    ],
)
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("time", [MS, -1, 1 << 62])
def test_a_value_of_any_kind_does_no_harm(value: bytes | None, time: int, *, dead: bool) -> None:
    view = make_view()
    headers = (("label", b"\xff"), ("connector.reason", None), ("connector.status", b"x" * 99))
    record = Record("out/0/1", value, None, headers, time, None, None)
    see(view, record, dead=dead)
    view.add_images(dict.fromkeys(view.take_picked(), b"junk"))
    assert len(page(view)["results" if not dead else "dead_letters"]) == 1


def test_a_foreign_models_outputs_are_told_where_there_is_no_class() -> None:
    view = make_view()
    see(view, result(label=None, score=None, outputs=[{"name": "boxes"}]))
    view.add_images({})
    [entry] = page(view)["results"]
    assert (entry["label"], entry["detail"]) == ("", '[{"name": "boxes"}]')


BASELINE = Baseline("fmnist 1", (0.0,) * 8 + (1.0,), 0.75, 0.0, 0.1)


def make_answers(count: int, **body: Any) -> list[Record]:  # noqa: ANN401
    known = {"top": TOP, "model": {"name": "fmnist", "version": "1"}, **body}
    return [result(number, **known) for number in range(count)]


def test_drift_is_of_the_last_two_thousand_answers() -> None:
    view = make_view()
    see(view, *make_answers(WINDOW))
    assert view.model == "fmnist 1"
    view.note_baseline(BASELINE)
    drift = page(view)["drift"]
    assert [one["name"] for one in drift["figures"]] == ["class_mix", "confidence", "near_ties"]
    assert [one["value"] for one in drift["figures"]] == pytest.approx([0, 0, 0], abs=0.002)
    assert [one["limit"] for one in drift["figures"]] == list(ALERT_ABOVE)
    assert drift["why"] == ""
    see(view, *make_answers(WINDOW, **{"class": 0, "score": 0.5}))
    values = [one["value"] for one in page(view)["drift"]["figures"]]
    assert values[0] > 1
    assert values[1] == pytest.approx(-0.25)


def test_why_drift_is_not_known_is_told() -> None:
    view = make_view()
    whose = "for its validation images are not known: see --baseline-url."
    assert page(view)["drift"] == {"figures": [], "why": f"The answers {whose}"}
    see(view, *make_answers(3))
    assert page(view)["drift"]["why"] == f"The answers of fmnist 1 {whose}"
    view.note_baseline(BASELINE)
    why = "3 of the 2000 predictions are there that it is measured of."
    assert page(view)["drift"] == {"figures": [], "why": why}


def test_what_was_there_before_and_dead_letters_are_no_drift() -> None:
    view = make_view()
    see(view, *make_answers(3), earlier=True)
    see(view, dead_letter(), dead=True)
    assert view.model == ""


@pytest.mark.parametrize(
    "body",
    [
        {"class": None},
        {"class": "8"},
        {"score": None},
        {"score": 2},
        {"top": [{"label": "Bag", "score": "high"}]},
        {"top": [1, 2]},
    ],
)
def test_an_answer_that_no_service_gives_is_not_measured(body: dict[str, Any]) -> None:
    assert read_answer(json.loads(make_answers(1, **body)[0].value or b"")) is None


@pytest.mark.parametrize("model", [None, 3, [], "fmnist"])
def test_a_model_without_a_name_is_measured_as_the_one_before(model: object) -> None:
    view = make_view()
    see(view, *make_answers(1), *make_answers(1, model=model))
    assert view.model == "fmnist 1"


def test_everything_on_the_page_is_bounded() -> None:
    view = make_view()
    view.note_progress(Progress({f"images/{number}": number for number in range(5000)}, 1))
    for number in range(200):
        many = [result(20 * number + n, label=f"class {20 * number + n}") for n in range(20)]
        see(view, *many, now=NOW + number)
        see(
            view,
            dead_letter(number, CANARY.data, reason=f"reason {number}"),
            now=NOW + number,
            dead=True,
        )
        view.add_images(dict.fromkeys(view.take_picked(), CANARY.data))
    found = page(view, NOW + 200)
    assert len(found["results"]) == live_view.MAX_RESULTS
    assert len(found["dead_letters"]) == live_view.MAX_DEAD_LETTERS
    assert len(found["classes"]) == live_view.MAX_CLASSES + 1
    assert len(found["reasons"]) == live_view.MAX_REASONS + 1
    assert found["reasons"][0] == ["other", 180]
    assert len(found["partitions"]) == live_view.MAX_PARTITIONS
    assert found["partition_count"] == 5000
    assert len(view.images()) == live_view.MAX_RESULTS + live_view.MAX_DEAD_LETTERS
    assert len(view.render(NOW + 200)) < 150_000


def test_a_stranger_makes_no_partitions() -> None:
    view = make_view()
    view.note_progress(Progress({"images/0": 1, "odd": 2, "images/10": 3, "images/9": 4}, 1))
    see(view, result(id="invented/0/1"), result(id=""), result(id=None))
    names = [one["name"] for one in page(view)["partitions"]]
    assert names == ["images/0", "images/9", "images/10", "odd"]
    assert not view._settled  # nor any counter that grows with them


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "there is no image"),
        (b"", "the value is empty"),
        (b"GIF89a", "6 bytes, no image that a browser shows"),
        (b"<svg/>", "6 bytes, no image that a browser shows"),
        (CANARY.data + bytes(500_000), f"{len(CANARY.data) + 500_000} bytes, more than are shown"),
        (encode_png(2001, 2000, bytes(2001 * 2000)), "2001 x 2000 pixels, more than are shown"),
        (encode_png(9, 0, b""), "9 x 0 pixels, more than are shown"),
    ],
)
def test_what_a_browser_is_not_given_says_why(value: bytes | None, why: str) -> None:
    assert live_view.keep_image(value) == (None, why)
