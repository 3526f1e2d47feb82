"""What is remembered of predictions: bounded, whatever a service says."""

from __future__ import annotations

from connectors.drift import MAX_CLASSES, MAX_LABEL_CHARACTERS, OTHER, Predicted


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


def test_an_answer_without_a_label_is_counted_under_other() -> None:
    assert Predicted().followed_by([{}]).classes == {OTHER: 1}


def test_the_model_is_named_with_its_version() -> None:
    model = {"name": "fmnist", "version": "1.0"}
    predicted = Predicted().followed_by([{"label": "Bag", "model": model}])
    assert predicted.model == "fmnist 1.0"
    assert predicted.followed_by([{"label": "Bag"}]).model == "fmnist 1.0"


def test_what_was_remembered_before_is_not_changed() -> None:
    before = Predicted().followed_by([{"label": "Bag"}])
    before.followed_by([{"label": "Bag"}])
    assert before.classes == {"Bag": 1}
