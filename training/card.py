"""MODEL_CARD.md: a run as a page for people, after Mitchell et al., Model Cards, FAccT 2019."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from .choices import FASHION_MNIST
from .evaluation import precision, recall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PICTURES = ("curves", "confusion", "reliability", "mistakes")

ABOUT_FASHION_MNIST = """\
Fashion-MNIST, Xiao et al. 2017 (MIT licence): grey photographs of the articles of one shop, of 28 x
28 pixels, bright on black. People who were shown 1,000 of its test images agreed with 83.5 % of the
labels, by majority of three (README of the data set): Shirt, Coat, Pullover and T-shirt are told
apart by the catalogue rather than by the eye. Not for deciding anything about people.
"""


def compute_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (of a sample; 0 for one value)."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def render_card(
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
    validation: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the page.

    `validation` is the Evaluation on the validation images, `others` holds summaries by run.
    """
    parts = [
        f"# Model card: {summary['run']}",
        render_table(("what", "value"), list_facts(config, summary)),
        "## Accuracy",
        render_table(
            ("images", "number", "accuracy", "95 % interval (Wilson)", "ECE", "NLL", "Brier"),
            [
                render_evaluation_row("validation", validation),
                *(render_evaluation_row(describe_evaluation(each), each) for each in evaluations),
            ],
        ),
        f"Other images than those of validation were looked at {len(evaluations)} times.",
        "## Classes, validation images",
        render_table(
            ("class", "images", "recall", "precision"), list_classes(config["classes"], validation)
        ),
        *render_robustness(evaluations),
        *render_runs(others),
        "## Pictures, validation images",
        "\n".join(f"![{name}]({name}.png)" for name in PICTURES),
        *(["## The data", ABOUT_FASHION_MNIST] if config["source"] == FASHION_MNIST else []),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def render_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def list_facts(config: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was done, on what."""
    machine = config["machine"]
    return [
        ("data", f"{config['source']}, SHA-256 of the images learned {summary['data']}"),
        ("held out", f"SHA-256 of the places {config['held_out']}"),
        ("final training of", config["final_of"] or "no other run: a twelfth was held out"),
        ("network", f"{config['network']}, {summary['parameters']:,} parameters"),
        ("seed", str(config["seed"])),
        ("length", f"{summary['epochs']} epochs, {summary['seconds']:.0f} s"),
        ("precision of products", config["recipe"].get("precision", "float32")),
        ("temperature", f"{summary['temperature']:.3f}"),
        (
            "machine",
            f"{machine['threads']} threads, {machine['capability']}, torch {machine['torch']}",
        ),
    ]


def render_evaluation_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the row of one evaluation."""
    low, high = found["interval"]
    honest = found["calibrated"]
    return (
        name,
        f"{found['images']:,}",
        format_percent(found["accuracy"]),
        f"{format_percent(low)} to {format_percent(high)}",
        format_percent(honest["ece"]),
        f"{honest['nll']:.4f}",
        f"{honest['brier']:.4f}",
    )


def describe_evaluation(evaluation: Mapping[str, Any]) -> str:
    """Return which images were looked at, when and how."""
    # Evaluations of older trees say "mirrored".
    tta = evaluation.get("tta", evaluation.get("mirrored"))
    how = ", with mirror images" if tta else ""
    return f"{evaluation['source']}, {evaluation['time']}{how}"


def list_classes(names: Sequence[str], found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each class."""
    shares = zip(recall(found["confusion"]), precision(found["confusion"]), strict=True)
    return [
        (name, str(sum(counts)), format_percent(seen), format_percent(right))
        for name, counts, (seen, right) in zip(names, found["confusion"], shares, strict=True)
    ]


def render_robustness(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the part on corruptions, of the last evaluation that looked at them."""
    looked = [each for each in evaluations if each["robustness"]]
    if not looked:
        return []
    rows = [(name, format_percent(share)) for name, share in looked[-1]["robustness"].items()]
    return [
        f"## Under corruptions, {looked[-1]['source']}",
        render_table(("what", "accuracy"), rows),
    ]


def render_runs(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the part on several runs; none for a single one."""
    if len(summaries) < 2:  # noqa: PLR2004 - one has no spread
        return []
    shares = [summary["accuracy"] for summary in summaries.values()]
    middle, deviation = compute_spread(shares)
    rows = [(name, format_percent(share)) for name, share in zip(summaries, shares, strict=True)]
    deviate = f"standard deviation {100 * deviation:.2f} points"
    return [
        "## Several runs",
        render_table(("run", "validation accuracy"), rows),
        f"Mean {format_percent(middle)}, {deviate}, {len(shares)} runs.",
    ]


def format_percent(share: float) -> str:
    """Return a share from 0 to 1 for people."""
    return f"{100 * share:.2f} %"
