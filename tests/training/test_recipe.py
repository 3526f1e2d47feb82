from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
import torch

from training.classifier import Normalised
from training.data import ImageSet
from training.errors import RunError
from training.networks import find_network
from training.recipe import Augmentation, Epoch, Fit, Recipe, Step, count_batches, one_cycle

from .conftest import stripes

if TYPE_CHECKING:
    from collections.abc import Callable


def ticking(seconds: float) -> Callable[[], float]:
    """Return a clock on which every look takes so many seconds."""
    ticks = count()
    return lambda: next(ticks) * seconds


class Pixels(torch.nn.Module):
    """The smallest thing that can learn."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(144, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(images.flatten(1) / 255)
        return logits


def train(budget: float, clock: Callable[[], float], recipe: Recipe) -> list[Step | Epoch]:
    fit = Fit(Pixels(), stripes(30), recipe, budget=budget, seed=0)
    return list(fit.events(lambda: 0.5, clock))


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [one_cycle(progress, 0.2) for progress in (0.0, 0.1, 0.2, 0.6, 1.0, 1.1)]

    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])


def test_without_a_warm_up_the_rate_stays_where_it_is() -> None:
    recipe = Recipe(batch=10, warm_up=None, max_lr=0.001)
    steps = [e for e in train(200.0, ticking(2.0), recipe) if isinstance(e, Step)]

    assert len(steps) > 10
    assert {step.rate for step in steps} == {0.001}


def test_the_schedule_ends_at_the_budget_however_slow_the_machine_is() -> None:
    for seconds in (0.5, 2.0, 4.0):
        steps = [e for e in train(200.0, ticking(seconds), Recipe(batch=10)) if isinstance(e, Step)]

        assert steps[-1].progress == pytest.approx(1.0, abs=0.1)
        assert steps[-1].rate == pytest.approx(0.0, abs=0.1 * 0.01 / 0.8)
        assert max(step.rate for step in steps) == pytest.approx(0.01, rel=0.25)


def test_a_machine_that_stands_still_for_a_while_still_ends_with_a_small_rate() -> None:
    ticks = iter([*range(60), *range(150, 1000)])

    events = train(200.0, lambda: float(next(ticks)), Recipe(batch=10))

    assert [e for e in events if isinstance(e, Step)][-1].rate < 0.05 * Recipe().max_lr


def test_a_small_data_set_ends_after_its_passes() -> None:
    events = train(1e9, ticking(0), Recipe(batch=10, epochs=4))

    steps = [event for event in events if isinstance(event, Step)]
    assert [event.number for event in events if isinstance(event, Epoch)] == [1, 2, 3, 4]
    assert [step.progress for step in steps] == pytest.approx([k / 12 for k in range(12)])


def test_an_epoch_that_the_budget_cuts_short_is_told_too() -> None:
    events = train(20.0, ticking(1.0), Recipe(batch=3))

    assert isinstance(events[-1], Epoch)
    assert events[-1].steps == sum(isinstance(event, Step) for event in events)
    assert events[-1].steps % 10 != 0


def test_even_the_smallest_budget_makes_one_step() -> None:
    step, epoch = train(1e-9, ticking(1.0), Recipe())

    assert isinstance(step, Step)
    assert isinstance(epoch, Epoch)


def test_no_batch_is_so_small_that_it_has_no_variance() -> None:
    model = Normalised(find_network("pyramid-16-48-96")(1, 3), 1)
    recipe = Recipe(batch=16, epochs=1)
    fit = Fit(model, stripes(17, size=8), recipe, budget=1e9, seed=0)

    events = list(fit.events(lambda: 0.0, ticking(0.0)))

    assert [event.images for event in events if isinstance(event, Step)] == [9, 8]


@pytest.mark.parametrize(
    ("images", "number"), [(55_000, 215), (2_048, 8), (300, 8), (110, 6), (31, 1), (1, 1)]
)
def test_a_small_data_set_is_cut_into_smaller_batches(images: int, number: int) -> None:
    assert count_batches(images, 256) == number


def test_a_step_learns() -> None:
    recipe = Recipe(epochs=40, translation=0, label_smoothing=0)
    epochs = [e for e in train(1e9, ticking(0), recipe) if isinstance(e, Epoch)]

    assert epochs[-1].loss < 0.8 * epochs[0].loss


def test_equal_seeds_learn_alike() -> None:
    torch.manual_seed(0)
    one = train(1e9, ticking(0), Recipe(epochs=2, batch=10))
    torch.manual_seed(0)
    two = train(1e9, ticking(0), Recipe(epochs=2, batch=10))

    assert [e.loss for e in one] == [e.loss for e in two]


def test_a_loss_that_is_no_number_stops_the_training_before_a_weight_is_changed() -> None:
    model = Pixels()
    fit = Fit(model, stripes(30), Recipe(batch=10), budget=1e9, seed=0)
    events = fit.events(lambda: 0.5, ticking(0))
    next(events)
    with torch.no_grad():
        model.linear.weight[0, 0] = torch.inf
    before = model.linear.bias.clone()

    with pytest.raises(RunError, match=r"the loss became \w+ in step 2, .*: choose a smaller"):
        next(events)

    assert torch.equal(model.linear.bias, before)


@pytest.mark.parametrize(("balance", "shares"), [(False, [0.8, 0.1, 0.1]), (True, [1 / 3] * 3)])
def test_balanced_a_rare_class_is_believed_in_as_much_as_a_frequent_one(
    balance: bool,  # noqa: FBT001 - a parameter
    shares: list[float],
) -> None:
    labels = torch.tensor([0] * 24 + [1] * 3 + [2] * 3)
    zeros = ImageSet(torch.zeros(30, 1, 12, 12, dtype=torch.uint8), labels)
    model, recipe = Pixels(), Recipe(epochs=200, label_smoothing=0, max_lr=0.1, balance=balance)

    list(Fit(model, zeros, recipe, budget=1e9, seed=0).events(lambda: 0.0, ticking(0)))

    believed = model(zeros.images[:1].float()).softmax(1)[0].tolist()
    assert believed == pytest.approx(shares, abs=0.03)


def test_the_time_that_was_spent_before_counts_after_a_restart() -> None:
    first = Fit(Pixels(), stripes(30), Recipe(batch=10), budget=100.0, seed=0)
    events = first.events(lambda: 0.5, ticking(1.0))
    before = [next(events) for _ in range(20)]
    second = Fit(Pixels(), stripes(30), Recipe(batch=10), budget=100.0, seed=0)
    second.load_state_dict(first.state_dict())

    after = [e for e in second.events(lambda: 0.5, ticking(1.0)) if isinstance(e, Step)]

    last = [event for event in before if isinstance(event, Step)][-1]
    assert after[0].number == last.number + 1
    assert last.progress <= after[0].progress <= last.progress + 0.05
    assert after[-1].progress == pytest.approx(1.0, abs=0.05)


def seen(recipe: Recipe, epoch: int, data: ImageSet) -> torch.Tensor:
    return Augmentation(data, recipe, seed=3)(torch.arange(len(data)), epoch, step=epoch)


def test_every_image_is_mirrored_in_every_second_epoch() -> None:
    data = stripes(40)
    recipe = Recipe(translation=0)

    first, second = seen(recipe, 1, data), seen(recipe, 2, data)

    assert torch.equal(second, first.flip(3))
    flipped = (first != data.images).flatten(1).any(1)
    assert 0 < flipped.sum() < 40
    assert torch.equal(first[flipped], data.images[flipped].flip(3))


def test_an_image_moves_by_no_more_than_the_shift_and_the_background_moves_in() -> None:
    images = torch.full((200, 1, 5, 5), 9, dtype=torch.uint8)
    images[:, :, 2, 2] = 200
    data = ImageSet(images, torch.zeros(200, dtype=torch.int64))

    found = seen(Recipe(translation=1), 1, data)

    places = {tuple(place) for place in (found == 200).nonzero()[:, 2:].tolist()}
    assert places == {(row, column) for row in (1, 2, 3) for column in (1, 2, 3)}
    assert (found == 9).sum() == 200 * 24


def test_what_may_not_be_mirrored_and_moved_stays_as_it_is() -> None:
    data = stripes(10, channels=3)

    assert torch.equal(seen(Recipe(flip=False, translation=0), 1, data), data.images)


def test_a_rectangle_of_any_size_up_to_the_share_is_blanked_anywhere_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageSet, "background", lambda _: 9)
    images = torch.full((4000, 3, 8, 6), 200, dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(4000, dtype=torch.int64))

    found = seen(Recipe(translation=0, cutout=0.5), 1, data)

    filled = found[:, 0] == 9
    rows, columns = filled.any(2).sum(1), filled.any(1).sum(1)
    assert torch.equal(filled.sum((1, 2)), rows * columns)
    assert set(rows.tolist()) == {0, 1, 2, 3, 4}
    assert set(columns.tolist()) == {0, 1, 2, 3}
    assert filled.any(0).all()
    assert torch.equal(found == 9, filled[:, None].expand(-1, 3, -1, -1))
