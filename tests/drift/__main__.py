"""What drift finds: `python -m tests.drift [--run latest]`.

First the figures of windows of validation images alone, and the thresholds that follow from them by
`fix_threshold`: those of the shipped model stand in deploy/prometheus/rules.yaml. Then the figures
of the test images: in many orders, where each alert must be silent, and with shifts of three kinds,
each at three strengths.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import yaml

from connectors.drift import WINDOW, Answer, Baseline, Drift, measure_drift
from training.choices import FASHION_MNIST
from training.data import ImageSet, split
from training.fashion_mnist import data_folder
from training.runs import Run
from training.sources import load_training_images, load_unseen_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from training.classifier import ImageClassifier

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules.yaml"
NEAR_TIE = 0.1
ORDERS = range(20, 40)
"""Seeds of the orders. 0 to 19 were looked at before `fix_threshold` was code: they prove less."""

ALLOWANCE = 1.5
STEP = 100  # records between two looks at a window
ROUNDS = 2000
FIGURES = Drift._fields


def read_thresholds() -> Mapping[str, float]:
    """Return the threshold of each figure, as its alert has it."""
    text = " ".join(
        str(rule["expr"]) for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    )
    found = re.findall(r"connector_drift_(\w+)\)+ > ([\d.]+)", text)
    return {name: float(value) for name, value in found}


def fix_threshold(largest: float) -> float:
    """Return ALLOWANCE times the largest figure of validation images, rounded up to hundredths."""
    return math.ceil(ALLOWANCE * largest * 100) / 100


class Shift(NamedTuple):
    """Test images as they would come from elsewhere; `strength` in the unit that `kind` names."""

    kind: str
    strength: float
    change: Callable[[ImageSet, float, torch.Generator], ImageSet]


def shift_mix(images: ImageSet, factor: float, generator: torch.Generator) -> ImageSet:
    """Let the first class come `factor` times as often."""
    weights = torch.where(images.labels == 0, factor, 1.0)
    return images.select(torch.multinomial(weights, len(images), True, generator=generator))


def shift_brightness(images: ImageSet, step: float, _: torch.Generator) -> ImageSet:
    """Add `step`, of 255, to each pixel."""
    return with_pixels(images, images.images.float() + step)


def shift_noise(images: ImageSet, deviation: float, generator: torch.Generator) -> ImageSet:
    """Add normal noise with this deviation, of 255."""
    noise = torch.randn(images.images.shape, generator=generator)
    return with_pixels(images, images.images.float() + deviation * noise)


def with_pixels(images: ImageSet, pixels: torch.Tensor) -> ImageSet:
    """Return the same labels under other pixels, float [N, C, H, W]."""
    return replace(images, images=pixels.round().clamp(0, 255).to(torch.uint8))


SHIFTS = (
    *(Shift("mix, one class so many times", factor, shift_mix) for factor in (1.5, 2.0, 3.0)),
    *(Shift("brightness, of 255", step, shift_brightness) for step in (4.0, 8.0, 16.0)),
    *(Shift("noise, deviation of 255", width, shift_noise) for width in (4.0, 8.0, 16.0)),
)


def ask(classifier: ImageClassifier, images: ImageSet) -> list[Answer]:
    """Return what a relay would keep of the answers."""
    best = classifier.predict(images.images).double().topk(2, dim=1)
    rows = zip(best.indices[:, 0].tolist(), best.values.tolist(), strict=True)
    return [Answer(number, first, first - second) for number, (first, second) in rows]


def make_baseline(answers: Sequence[Answer], classes: int) -> Baseline:
    """Return what the archive would say of these answers."""
    counts = np.bincount([answer.number for answer in answers], minlength=classes)
    return Baseline(
        "",
        tuple(float(share) for share in counts / len(answers)),
        float(np.mean([answer.score for answer in answers])),
        float(np.mean([(answer.margin or 0.0) < NEAR_TIE for answer in answers])),
        NEAR_TIE,
    )


def measure(window: Sequence[Answer], baseline: Baseline) -> Mapping[str, float]:
    """Return the size of each figure."""
    drift = measure_drift(window, baseline)
    if drift is None:
        raise ValueError(f"a window has {WINDOW} answers")
    return {name: abs(getattr(drift, name) or 0.0) for name in FIGURES}


def measure_chance(answers: Sequence[Answer], classes: int) -> Mapping[str, list[float]]:
    """Return the figures of windows without drift: baseline and window drawn with replacement."""
    dice = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(ROUNDS):
        drawn = [answers[place] for place in dice.integers(len(answers), size=len(answers))]
        window = [answers[place] for place in dice.integers(len(answers), size=WINDOW)]
        for name, value in measure(window, make_baseline(drawn, classes)).items():
            found[name].append(value)
    return found


def measure_orders(
    answers: Sequence[Answer], baseline: Baseline, step: int = STEP
) -> Iterator[Mapping[str, float]]:
    """Give the figures of all windows in all ORDERS of the answers."""
    for seed in ORDERS:
        order = np.random.default_rng(seed).permutation(len(answers))
        shuffled = [answers[place] for place in order]
        for start in range(0, len(shuffled) - WINDOW + 1, step):
            yield measure(shuffled[start : start + WINDOW], baseline)


def find_alerts(figures: Mapping[str, float], limits: Mapping[str, float]) -> list[str]:
    """Return the figures whose alert would fire."""
    return [name for name in FIGURES if figures[name] > limits[name]]


def render_chance(
    found: Mapping[str, Sequence[float]], limits: Mapping[str, float]
) -> Iterator[str]:
    """Give a line for each figure."""
    yield f"{'figure':12}{'median':>10}{'99 %':>10}{'largest':>10}{'threshold':>11}"
    for name, values in found.items():
        middle, high = np.quantile(values, (0.5, 0.99))
        yield f"{name:12}{middle:10.4f}{high:10.4f}{max(values):10.4f}{limits[name]:11.4f}"


def render_thresholds(
    chance: Mapping[str, Sequence[float]], limits: Mapping[str, float]
) -> Iterator[str]:
    """Say which thresholds follow, and whether the rules have them."""
    fixed = {name: fix_threshold(max(values)) for name, values in chance.items()}
    words = ", ".join(f"{name} {value:g}" for name, value in fixed.items())
    same = "as in rules.yaml" if fixed == limits else "rules.yaml has others: write these there"
    yield f"{ALLOWANCE:g} times the largest, rounded up to hundredths: {words}; {same}"


def render_shift(
    shift: Shift, windows: Sequence[Mapping[str, float]], limits: Mapping[str, float]
) -> str:
    """Return a line: how many windows fire, and the mean size of each figure."""
    alerts = [find_alerts(window, limits) for window in windows]
    means = "".join(f"{np.mean([window[name] for window in windows]):12.4f}" for name in FIGURES)
    return f"{shift.kind:31}{shift.strength:8g}{sum(map(bool, alerts)):6}/{len(alerts)}{means}"


def report(classifier: ImageClassifier) -> Iterator[str]:
    """Give the lines of the report; raises SystemExit(1) when a test order fires."""
    limits, folder = read_thresholds(), data_folder()
    validation = ask(classifier, split(load_training_images(FASHION_MNIST, folder))[1])
    baseline = make_baseline(validation, classifier.classes)
    yield (
        f"Baseline: {len(validation)} validation images, mean confidence "
        f"{baseline.mean_confidence:.4f}, near ties {baseline.near_ties:.4f}"
    )
    yield f"\n{ROUNDS} windows of {WINDOW} validation images, each with a baseline drawn anew:"
    chance = measure_chance(validation, classifier.classes)
    yield from render_chance(chance, limits)
    yield from render_thresholds(chance, limits)
    test = load_unseen_images(FASHION_MNIST, folder)
    windows = list(measure_orders(ask(classifier, test), baseline))
    yield f"\n{len(ORDERS)} other orders of the {len(test)} test images, {len(windows)} windows:"
    yield from render_chance({name: [one[name] for one in windows] for name in FIGURES}, limits)
    yield f"\n{'shift of the test images':31}{'strength':>8}{'found':>9}" + "".join(
        f"{name:>12}" for name in FIGURES
    )
    weakest: dict[str, float] = {}
    for shift in SHIFTS:
        generator = torch.Generator().manual_seed(0)
        answers = ask(classifier, shift.change(test, shift.strength, generator))
        shifted = list(measure_orders(answers, baseline, WINDOW))
        yield render_shift(shift, shifted, limits)
        if all(find_alerts(one, limits) for one in shifted):
            weakest.setdefault(shift.kind, shift.strength)
    for kind in dict.fromkeys(shift.kind for shift in SHIFTS):
        yield f"weakest that each window shows: {kind}: {weakest.get(kind, 'none')}"
    if any(find_alerts(window, limits) for window in windows):
        raise SystemExit("drift: an alert fires for test images as they are")


def main(argv: list[str] | None = None) -> int:
    """Print the report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drift", description=__doc__)
    parser.add_argument("--run", default="latest", help="whose classifier")
    for line in report(Run(parser.parse_args(argv).run).classifier()):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
