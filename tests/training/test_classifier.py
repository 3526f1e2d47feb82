from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import TensorDataset

from training import ImageClassifier
from training.calibration import measure_quality
from training.choices import PRECISIONS
from training.classifier import Normalised
from training.data import ImageSet
from training.errors import DataError, RunError
from training.networks import FlipTTA
from training.recipe import Epoch, Recipe, Step

from .conftest import answers_of, stripes

if TYPE_CHECKING:
    from pathlib import Path

QUICK = Recipe(batch=16, epochs=12)


def trained(*, channels: int = 1, size: int = 12) -> ImageClassifier:
    data = stripes(60, channels=channels, size=size)
    classifier = ImageClassifier(channels, 3, network=tiny)
    classifier.train(data, data, recipe=QUICK, clock=lambda: 0.0)
    return classifier


def tiny(channels: int, classes: int) -> nn.Module:
    """Make a network with a lazy layer, as users write them."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(classes),
    )


def test_it_learns_what_is_easy_and_tells_how() -> None:
    data = stripes(120, size=16)
    classifier = ImageClassifier(1, 3)

    history = classifier.train(
        data, stripes(30, size=16), recipe=Recipe(batch=20, epochs=8), clock=lambda: 0.0
    )

    assert classifier.evaluate(data) > 0.9
    assert history.accuracy == classifier.evaluate(stripes(30, size=16))
    assert [epoch.number for epoch in history.epochs] == list(range(1, 9))


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 24), (4, 9, 41)])
def test_the_default_network_takes_any_channels_and_any_size_from_8_on(
    channels: int, height: int, width: int
) -> None:
    classifier = ImageClassifier(channels, 5, size=(height, width))

    probabilities = classifier.predict(
        torch.randint(256, (7, channels, height, width), dtype=torch.uint8)
    )

    assert probabilities.shape == (7, 5)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(7))


def test_the_size_is_taken_from_the_first_image() -> None:
    data = TensorDataset(
        torch.randint(256, (20, 3, 10, 14), dtype=torch.uint8), torch.arange(20) % 2
    )
    classifier = ImageClassifier(3, 2)

    classifier.train(data, data, recipe=Recipe(epochs=1))

    assert classifier.size == (10, 14)


def test_no_lazy_layer_is_left_once_the_network_is_built() -> None:
    classifier = ImageClassifier(1, 3, size=12, network=tiny)

    assert not any(is_lazy(part) for part in classifier.model.parameters())
    assert type(next(iter(classifier.model.network.children()))) is nn.Conv2d
    assert not any(isinstance(part, nn.LazyLinear) for part in classifier.model.modules())


def test_the_dry_run_leaves_the_running_statistics_alone() -> None:
    classifier = ImageClassifier(1, 3, size=12, network=tiny)

    assert isinstance(classifier.model.network, nn.Sequential)
    norm = classifier.model.network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0


def test_equal_seeds_give_equal_weights_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (ImageClassifier(1, 3, size=12, seed=seed) for seed in (1, 1, 2))
    images = stripes(5).images

    assert torch.equal(one.predict(images), two.predict(images))
    assert not torch.equal(one.predict(images), other.predict(images))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_was_saved_predicts_the_same_bits(tmp_path: Path) -> None:
    data = stripes(60, channels=3, size=16)
    classifier = ImageClassifier(3, 3, seed=4)
    classifier.train(data, data, recipe=Recipe(batch=16, epochs=2))

    classifier.save(tmp_path / "checkpoint.pt")
    loaded = ImageClassifier.load(tmp_path / "checkpoint.pt")

    assert torch.equal(loaded.predict(data.images), classifier.predict(data.images))
    assert (loaded.names, loaded.background, loaded.data, loaded.seed, loaded.size) == (
        ("every 2", "every 3", "every 4"),
        data.background(),
        data.digest(),
        4,
        (16, 16),
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint.pt"]


@pytest.mark.parametrize(
    ("after", "precision"),
    [
        *((after, "float32") for after in (1, 5, 8, 9, 17, 24)),
        *((after, "bfloat16") for after in (5, 8)),
    ],
)
def test_interrupted_anywhere_and_resumed_the_weights_are_the_same_bits(
    tmp_path: Path, after: int, precision: str
) -> None:
    data = stripes(50, size=12)
    recipe = Recipe(batch=8, epochs=3, precision=precision)  # 7 steps and 1 epoch: 8 events
    whole = ImageClassifier(1, 3, seed=2)
    uninterrupted = list(whole.steps(data, data, math.inf, recipe=recipe))

    first = ImageClassifier(1, 3, seed=2)
    before = list(islice(first.steps(data, data, math.inf, recipe=recipe), after))
    first.save(tmp_path / "checkpoint.pt")
    second = ImageClassifier.load(tmp_path / "checkpoint.pt")
    torch.manual_seed(99)  # nothing may depend on torch's own state
    rest = list(second.steps(data, data, math.inf, recipe=recipe, resume=True))

    for name, weights in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], weights), name
    assert [losses(event) for event in before + rest] == [losses(e) for e in uninterrupted]
    assert not second.underway


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_products_of_the_training_are_made_in_the_recipes_precision(precision: str) -> None:
    data, classifier = stripes(60, size=12), ImageClassifier(1, 3, size=12, network=tiny)

    with answers_of(nn.Linear) as made:
        classifier.train(data, data, recipe=Recipe(batch=60, epochs=2, precision=precision))

    assert made == {(True, getattr(torch, precision)), (False, torch.float32)}
    assert {weights.dtype for weights in classifier.model.parameters()} == {torch.float32}


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(DataError, match="no precision 'float16': take one of float32, bfloat16"):
        ImageClassifier(1, 3).train(stripes(60), None, recipe=Recipe(precision="float16"))


def test_calibrated_it_is_more_honest_and_answers_the_same() -> None:
    classifier, images = trained(), stripes(300)
    wrong = torch.where(torch.arange(300) % 4 == 0, images.labels.roll(1), images.labels)
    doubtful = ImageSet(images.images, wrong)
    before = classifier.logits(images.images)

    found = classifier.calibrate(doubtful)

    assert 1.0 < found < 20.0
    assert torch.allclose(classifier.logits(images.images) * found, before, rtol=1e-4, atol=1e-5)
    honest = measure_quality(classifier.predict(images.images), wrong)
    assert honest.nll < measure_quality(before.softmax(1), wrong).nll
    assert classifier.calibrate(doubtful) == pytest.approx(found, rel=1e-4)


def test_a_new_training_begins_uncalibrated(tmp_path: Path) -> None:
    classifier, images = trained(), stripes(60)
    wrong = torch.where(torch.arange(60) % 4 == 0, images.labels.roll(1), images.labels)
    classifier.calibrate(ImageSet(images.images, wrong))
    assert classifier.model.temperature.item() != 1.0
    classifier.save(tmp_path / "checkpoint.pt")
    loaded = ImageClassifier.load(tmp_path / "checkpoint.pt", network=tiny)
    assert torch.equal(loaded.predict(stripes(9).images), classifier.predict(stripes(9).images))

    next(iter(classifier.steps(stripes(60), stripes(60))))

    assert classifier.model.temperature.item() == 1.0


def losses(event: Step | Epoch) -> tuple[int, float, float]:
    return event.number, event.loss, event.accuracy


def test_what_came_to_its_end_cannot_be_resumed() -> None:
    classifier = trained()

    with pytest.raises(RunError, match="nothing to resume"):
        classifier.steps(stripes(60), stripes(60), resume=True)


def test_other_images_than_at_the_beginning_cannot_be_resumed_with(tmp_path: Path) -> None:
    classifier = ImageClassifier(1, 3)
    next(iter(classifier.steps(stripes(60), stripes(60))))
    classifier.save(tmp_path / "checkpoint.pt")

    with pytest.raises(DataError, match="not the images that the training began with"):
        ImageClassifier.load(tmp_path / "checkpoint.pt").steps(
            stripes(30), stripes(30), resume=True
        )


def test_a_network_of_your_own_is_saved_and_loaded_with_itself(tmp_path: Path) -> None:
    classifier = trained()
    classifier.save(tmp_path / "checkpoint.pt")

    with pytest.raises(RunError, match="network of your own"):
        ImageClassifier.load(tmp_path / "checkpoint.pt")

    loaded = ImageClassifier.load(tmp_path / "checkpoint.pt", network=tiny)
    images = stripes(9).images
    assert torch.equal(loaded.predict(images), classifier.predict(images))


def test_with_mirror_images_both_sides_are_answered_alike(tmp_path: Path) -> None:
    classifier, images = trained(), stripes(9).images
    left, right = classifier.logits(images), classifier.logits(images.flip(3))

    both = classifier.with_tta()
    both.save(tmp_path / "checkpoint.pt")
    loaded = ImageClassifier.load(
        tmp_path / "checkpoint.pt", network=lambda *what: FlipTTA(tiny(*what))
    )

    assert torch.allclose(both.logits(images), (left + right) / 2, atol=1e-5)
    assert torch.equal(loaded.logits(images), both.logits(images))
    assert not torch.allclose(left, right, atol=1e-3)
    assert torch.equal(classifier.logits(images), left)


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "weights": Trap()}, tmp_path / "checkpoint.pt")

    with pytest.raises(RunError, match="is not a checkpoint"):
        ImageClassifier.load(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)

    with pytest.raises(RunError, match="is not a checkpoint"):
        ImageClassifier.load(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 0}, tmp_path / "checkpoint.pt")

    with pytest.raises(RunError, match="of this version"):
        ImageClassifier.load(tmp_path / "checkpoint.pt")


def test_a_missing_checkpoint_is_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is missing: `make train`"):
        ImageClassifier.load(tmp_path / "checkpoint.pt")


def test_mean_and_deviation_are_those_of_the_pixels() -> None:
    images = torch.randint(256, (50, 3, 9, 9), dtype=torch.uint8)
    images[:, 2] = 7
    model = Normalised(nn.Identity(), 3)

    model.measure(images)

    pixels = images.double().transpose(0, 1).flatten(1)
    assert torch.allclose(model.mean.flatten().double(), pixels.mean(1))
    expected = pixels.std(1, correction=0)
    assert torch.allclose(model.deviation.flatten()[:2].double(), expected[:2])
    assert model.deviation.flatten()[2] == 1.0


def test_validation_images_have_no_part_in_mean_and_deviation() -> None:
    training = stripes(30)
    bright = ImageSet(torch.full_like(training.images, 255), training.labels)
    classifier = ImageClassifier(1, 3)

    classifier.train(training, bright, recipe=Recipe(epochs=1))

    assert classifier.model.mean.item() == pytest.approx(training.images.double().mean().item())


def test_before_it_has_a_size_it_says_how_to_get_one() -> None:
    with pytest.raises(RunError, match="has no size yet: give it `size`, or train it"):
        ImageClassifier(1, 3).predict(stripes(2).images)


def test_a_network_that_cannot_take_the_size_is_named_before_training() -> None:
    with pytest.raises(DataError, match="cannot take images of 4x4: make them larger"):
        ImageClassifier(1, 3, size=4)


def test_a_network_with_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(DataError, match=r"must return logits \[N, 3\], not \['N', 144\]"):
        ImageClassifier(1, 3, size=12, network=lambda _channels, _classes: nn.Flatten())


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"no network 'resnet': take one of pyramid-16-48-96"):
        ImageClassifier(1, 3, size=12, network="resnet")


def test_images_of_another_size_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="are 12x12, but the classifier takes 10x10: resize them"):
        ImageClassifier(1, 3, size=10).train(stripes(9), stripes(9))


def test_validation_images_of_another_size_are_refused_before_training() -> None:
    with pytest.raises(DataError, match="are 16x16, but the classifier takes 12x12"):
        ImageClassifier(1, 3).train(stripes(9), stripes(9, size=16))


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 12, 12), torch.zeros(2, 12, 12, dtype=torch.uint8)]
)
def test_what_cannot_be_predicted_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"images must be uint8 \[N, 1, 12, 12\]"):
        ImageClassifier(1, 3, size=12).predict(images)
