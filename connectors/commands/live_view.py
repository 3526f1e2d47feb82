"""The state of the live page: what came of late, and how fast. Pure, and bounded in all its parts.

Whoever writes to the topics chooses labels, headers and images, so each text is cut and cleaned,
each table has an end, and an image is kept only if a browser can show it at a known cost.

    read -> see          counts, rates, latencies, classes; picks a few of the newest
    fetch -> add_image   gives these their images
    render               all of it as one JSON document, and the images by number
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..drift import ALERT_ABOVE, WINDOW, Drift, Predicted, measure_drift
from ..image_header import read_image_header
from ..text import decode_text, parse_json, replace_control_characters
from . import dlq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..drift import Baseline
    from ..records import Progress, Record, Sighting

SLOT = 5.0
"""Seconds of one step of the curves."""

SLOTS = 60
"""Steps of the curves: five minutes."""

RATE_WINDOW = 10.0
"""Seconds that a rate is taken of."""

MAX_RESULTS = 24
"""Results on the page, each with its image."""

MAX_PICKED = 8
"""Results that get an image in one round: no eye follows more, and each costs the broker a read."""

MAX_DEAD_LETTERS = 20

MAX_PARTITIONS = 64
"""On the page: those that are behind most."""

MAX_CLASSES, MAX_REASONS = 12, 20
"""That are counted by name; what comes beyond them is OTHER."""

OTHER = "other"

MAX_NAME, MAX_DETAIL = 100, 300
"""Characters of a label, key or id, and of a sentence."""

MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 500_000, 4_000_000
"""Of an image that is kept, and handed to a browser."""

MAX_LATENCIES = 1000
"""Latencies of one step of the curves that its quantiles are taken of: the last ones."""

MAX_TIME_MS = 1 << 53
"""Milliseconds since the epoch; no record is from a later time."""


class StoredImage(NamedTuple):
    """An image that a browser may be given."""

    content_type: str
    data: bytes


@dataclass(slots=True)
class Entry:
    """A result or a dead letter on the page: its texts, and its image or why there is none."""

    number: int
    fields: Mapping[str, Any]
    image: StoredImage | None = None
    why: str = ""


@dataclass(slots=True)
class Slot:
    """What came in SLOT seconds."""

    begin: float
    results: int = 0
    dead_letters: int = 0
    lag: int | None = None
    classes: Counter[str] = field(default_factory=Counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))


class LiveView:
    """All that the page shows. `now`: seconds since the epoch; called by one thread.

    `about`: what stands in the head of the page, such as the names of the topics.
    """

    def __init__(self, about: Mapping[str, str], now: float) -> None:
        self._about = {name: clean(text, MAX_NAME) for name, text in about.items()}
        self._started = now
        self._numbers = 0
        self._results: deque[Entry] = deque(maxlen=MAX_RESULTS)
        self._dead: deque[Entry] = deque(maxlen=MAX_DEAD_LETTERS)
        self._picked: deque[Record] = deque(maxlen=MAX_PICKED)
        self._slots: deque[Slot] = deque([Slot(now)], maxlen=SLOTS)
        self._counts: Counter[str] = Counter()  # results, dead_letters, labelled, right
        self._classes: list[str] = []  # in the order in which they came: each keeps its colour
        self._reasons: Counter[str] = Counter()
        self._lag: Mapping[str, int] = {}
        self._members: int | None = None
        self._settled: Counter[str] = Counter()  # of the lanes in _lag
        self._history: deque[tuple[float, int, Counter[str]]] = deque()  # within RATE_WINDOW
        self._trouble = ""
        self._predicted = Predicted()
        self._baseline: Baseline | None = None

    # What came

    def see(self, sightings: Iterable[Sighting], now: float) -> None:
        """Take what was read; what was there before the start is shown, but not counted."""
        self._advance(now)
        answers: list[dict[str, Any]] = []
        for one in sorted(sightings, key=lambda one: one.record.time):
            if one.dead:
                self._see_dead_letter(one.record, earlier=one.earlier)
            elif one.earlier:
                self._picked.append(one.record)
            elif answer := self._see_result(one.record):
                answers.append(answer)
        if answers:
            self._predicted = self._predicted.followed_by(answers)

    def _advance(self, now: float) -> None:
        """Begin the steps that are due; those that passed unseen are empty."""
        if now - self._slots[-1].begin > SLOT * SLOTS:  # the machine slept
            self._slots.clear()
            self._slots.append(Slot(now))
        while now - self._slots[-1].begin >= SLOT:
            self._slots.append(Slot(self._slots[-1].begin + SLOT))

    def _see_result(self, record: Record) -> dict[str, Any] | None:
        """Count a new result; return what drift is measured of, if it is there."""
        self._picked.append(record)
        found = read_result(record)
        slot = self._slots[-1]
        slot.results += 1
        self._counts["results"] += 1
        if "label" in found:
            slot.classes[self._name_class(clean(str(found["label"]), MAX_NAME))] += 1
        if (latency := measure_latency(record, found)) is not None:
            slot.latencies.append(latency)
        label = dlq.last_header(record, "label")
        if label is not None and "class" in found:
            self._counts["labelled"] += 1
            self._counts["right"] += decode_text(label) == str(found["class"])
        self._note_settled(str(found.get("id", "")))
        return read_answer(found)

    def _see_dead_letter(self, record: Record, *, earlier: bool) -> None:
        fields = describe_dead_letter(record)
        entry = Entry(self._next_number(), fields)
        entry.image, entry.why = keep_image(record.value)
        self._dead.append(entry)
        if earlier:
            return
        self._slots[-1].dead_letters += 1
        self._counts["dead_letters"] += 1
        reason = fields["reason"]
        known = reason in self._reasons or len(self._reasons) < MAX_REASONS
        self._reasons[reason if known else OTHER] += 1
        self._note_settled(dlq.find_source(record))

    def _name_class(self, label: str) -> str:
        if label not in self._classes and len(self._classes) < MAX_CLASSES:
            self._classes.append(label)
        return label if label in self._classes else OTHER

    def _note_settled(self, source: str) -> None:
        lane = source.rpartition("/")[0]
        if lane in self._lag:  # else anybody could make lanes
            self._settled[lane] += 1

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Their images

    def take_picked(self) -> list[str]:
        """Return the ids of the source records whose images are wanted now."""
        return [find_id(record) for record in self._picked]

    def add_images(self, values: Mapping[str, bytes]) -> None:
        """Put what was picked on the page, with the values that are there, by id."""
        for record in self._picked:
            entry = Entry(self._next_number(), describe_result(record))
            entry.image, entry.why = keep_image(values.get(find_id(record)))
            self._results.append(entry)
        self._picked.clear()

    # What was measured

    def note_progress(self, progress: Progress | None) -> None:
        """Take how far the group is; None: that is not known now, and was as it is on the page."""
        if progress:
            self._lag, self._members = progress.lag, progress.members
            self._slots[-1].lag = sum(self._lag.values())

    @property
    def model(self) -> str:
        """Name and version of the model that answered last; empty: none did, or it has no name."""
        return self._predicted.model

    def note_baseline(self, baseline: Baseline | None) -> None:
        """Take the answers of `model` for its validation images; None: they are not known."""
        self._baseline = baseline

    def note_trouble(self, trouble: str) -> None:
        """Take why the broker does not answer; empty: it does."""
        self._trouble = clean(trouble, MAX_DETAIL)

    # The page

    def render(self, now: float) -> bytes:
        """Return all of it as JSON; times in milliseconds since the epoch, latencies in seconds."""
        self._advance(now)
        rate, lane_rates = self._measure_rates(now)
        document = {
            "about": self._about,
            "now": round(now * 1000),
            "started": round(self._started * 1000),
            "trouble": self._trouble,
            "members": self._members,
            "counts": {name: self._counts[name] for name in COUNTS},
            "rate": rate,
            "lag": sum(self._lag.values()) if self._members is not None else None,
            "latency": summarise(self._list_latest_latencies()),
            "partitions": self._list_partitions(lane_rates),
            "partition_count": len(self._lag),
            "slot_seconds": SLOT,
            "drift": self._render_drift(),
            "classes": [*self._classes, OTHER],
            "slots": [self._render_slot(slot) for slot in self._slots],
            "reasons": self._reasons.most_common(),
            "results": [render_entry(entry) for entry in reversed(self._results)],
            "dead_letters": [render_entry(entry) for entry in reversed(self._dead)],
        }
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    def images(self) -> dict[int, StoredImage]:
        """Return the images of the page by the number of their entries."""
        entries = (*self._results, *self._dead)
        return {entry.number: entry.image for entry in entries if entry.image}

    def _list_latest_latencies(self) -> list[float]:
        return [latency for slot in list(self._slots)[-2:] for latency in slot.latencies]

    def _measure_rates(self, now: float) -> tuple[float, dict[str, float]]:
        """Results and dead letters a second: of all, and of each lane."""
        total = self._counts["results"] + self._counts["dead_letters"]
        self._history.append((now, total, self._settled.copy()))
        while now - self._history[0][0] > RATE_WINDOW:
            self._history.popleft()
        then, before, settled = self._history[0]
        seconds = now - then or 1.0  # at first: nothing in no time
        lanes = {lane: (self._settled[lane] - settled[lane]) / seconds for lane in self._lag}
        return (total - before) / seconds, lanes

    def _list_partitions(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """Those that are behind most, in the order of their names."""
        worst = sorted(self._lag, key=lambda lane: -self._lag[lane])[:MAX_PARTITIONS]
        return [
            {"name": clean(lane, MAX_NAME), "lag": self._lag[lane], "rate": rates[lane]}
            for lane in sorted(worst, key=_order)
        ]

    def _render_drift(self) -> dict[str, Any]:
        """Return the figures with the limits of their alerts, or why there are none."""
        recent, baseline = self._predicted.recent, self._baseline
        drift = measure_drift(recent, baseline) if baseline else None
        rows = zip(Drift._fields, drift or (), ALERT_ABOVE, strict=False)
        return {
            "figures": [dict(zip(("name", "value", "limit"), row, strict=True)) for row in rows],
            "why": "" if drift else explain_no_drift(self.model, len(recent), known=bool(baseline)),
        }

    def _render_slot(self, slot: Slot) -> dict[str, Any]:
        return {
            "results": slot.results,
            "dead_letters": slot.dead_letters,
            "lag": slot.lag,
            "latency": summarise(slot.latencies),
            "classes": [slot.classes[name] for name in (*self._classes, OTHER)],
        }


COUNTS = "results", "dead_letters", "labelled", "right"


def _order(lane: str) -> tuple[str, int, str]:
    """Partition 10 after 9."""
    name, _, number = lane.rpartition("/")
    return (name, int(number), "") if number.isdecimal() else (lane, 0, number)


# What records say


def clean(text: str, limit: int) -> str:
    """Cut a text of others, and take out what is not to be printed, such as marks of direction."""
    return replace_control_characters(text[:limit])


def read_result(record: Record) -> Mapping[str, Any]:
    """Return the prediction in a record's value; nothing if it is none."""
    found = parse_json(record.value)
    return found if isinstance(found, dict) else {}


def find_id(record: Record) -> str:
    """Return the id of the source record of a result; its own, when it does not tell."""
    return str(read_result(record).get("id", record.id))[:MAX_DETAIL]


def measure_latency(record: Record, result: Mapping[str, Any]) -> float | None:
    """Seconds from the source record's time to the result's, never negative; None: not known."""
    time = result.get("time")
    if not isinstance(time, int) or not 0 <= time < MAX_TIME_MS:
        return None
    return max(0.0, (record.time - time) / 1000)


def read_answer(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what drift is measured of; None: it is not there, or not what a service answers."""
    top, model = result.get("top"), result.get("model")
    scores = [_describe_class(one)["score"] for one in top[:2]] if isinstance(top, list) else []
    number, score = result.get("class"), _read_score(result.get("score"))
    if not isinstance(number, int) or score is None or None in scores:
        return None
    return {
        "class": number,
        "label": str(result.get("label", "")),
        "score": score,
        "top": [{"score": one} for one in scores],
        "model": model if isinstance(model, dict) else {},
    }


def explain_no_drift(model: str, count: int, *, known: bool) -> str:
    """Say what is missing until drift can be measured; `count`: predictions of this model."""
    if not known:
        whose = f"of {model} " if model else ""
        return f"The answers {whose}for its validation images are not known: see --baseline-url."
    return f"{count} of the {WINDOW} predictions are there that it is measured of."


def describe_result(record: Record) -> dict[str, Any]:
    """Return the texts of a result on the page."""
    found = read_result(record)
    rest = "" if "label" in found else json.dumps(found.get("outputs", found))
    top = found.get("top")
    return {
        "id": clean(find_id(record), MAX_NAME),
        "name": clean(decode_text(record.key or dlq.last_header(record, "name")) or "", MAX_NAME),
        "label": clean(str(found.get("label", "")), MAX_NAME),
        "score": _read_score(found.get("score")),
        "top": [_describe_class(one) for one in top[:3]] if isinstance(top, list) else [],
        "detail": clean(rest, MAX_DETAIL),
        "expected": clean(decode_text(dlq.last_header(record, "label")) or "", MAX_NAME),
        "class": clean(str(found.get("class", "")), MAX_NAME),
        "time": _bound_time(record.time),
        "latency": measure_latency(record, found),
    }


def _describe_class(one: object) -> dict[str, Any]:
    found = one if isinstance(one, dict) else {}
    label = clean(str(found.get("label", "")), MAX_NAME)
    return {"label": label, "score": _read_score(found.get("score"))}


def _read_score(score: object) -> float | None:
    return float(score) if isinstance(score, int | float) and 0 <= score <= 1 else None


def _bound_time(time_ms: int) -> int | None:
    return time_ms if 0 <= time_ms < MAX_TIME_MS else None


def describe_dead_letter(record: Record) -> dict[str, Any]:
    """Return the texts of a dead letter on the page."""
    fields = dlq.to_dict(record)
    return {
        "id": clean(fields["id"], MAX_NAME),
        "name": clean(fields["key"] or "", MAX_NAME),
        "reason": clean(fields["reason"] or "unknown", MAX_NAME),
        "detail": clean(fields["detail"] or "", MAX_DETAIL),
        "status": fields["status"],
        "attempts": fields["attempts"],
        "bytes": fields["bytes"],
        "time": _bound_time(record.time),
    }


def keep_image(value: bytes | None) -> tuple[StoredImage | None, str]:
    """Return the image, or why a browser is not given one."""
    if not value:
        return None, "there is no image" if value is None else "the value is empty"
    if len(value) > MAX_IMAGE_BYTES:
        return None, f"{len(value)} bytes, more than are shown"
    header = read_image_header(value)
    if header is None:
        return None, f"{len(value)} bytes, no image that a browser shows"
    if not 0 < header.width * header.height <= MAX_IMAGE_PIXELS:
        return None, f"{header.width} x {header.height} pixels, more than are shown"
    return StoredImage(header.content_type, value), ""


def render_entry(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON; the page finds its image by its number."""
    return {
        **entry.fields,
        "number": entry.number,
        "image": entry.image is not None,
        "why": entry.why,
    }


def summarise(latencies: Sequence[float]) -> dict[str, float] | None:
    """Return median and 95th percentile in seconds; None: there is none."""
    if not latencies:
        return None
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return {"median": ordered[last // 2], "p95": ordered[round(last * 0.95)]}
