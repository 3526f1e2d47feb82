"""Writes the tables of docs/operating.md from the code: `python -m tests.reference [--check]`.

A table lies between `<!-- begin NAME -->` and `<!-- end NAME -->`; the rest of the page is kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_origin

from connectors import __main__, daemon, registry
from connectors.brokers.kafka.settings import RunKafka
from connectors.drift import WINDOW, Answer, Baseline, Predicted
from connectors.images import CANARY
from connectors.metrics import Health, InstrumentedBroker, RelayCollector
from connectors.records import Reason
from connectors.relay import Relay
from connectors.settings import PREFIX, former_name, setting_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic.fields import FieldInfo

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operating.md"
FLAG_HEADS = "flag", "variable", "default", "meaning"
Row = tuple[str, ...]


def _flag_row(name: str, field: FieldInfo) -> Row:
    key, text = setting_name(name, field), str(field.description)
    flag, variable = f"`{_flag(key)}`", f"`{PREFIX}{key.upper()}`"
    if get_origin(field.annotation) is dict or key == "paths":
        flag, variable = ("`PATH …`", "") if key == "paths" else (f"`[{key}]` in the file", "")
    default = "" if field.default_factory or field.default in (None, "") else f"`{field.default}`"
    if named := re.search(r" \(default: ([^)]+)\)", text):
        default, text = f"`{named[1]}`", text.replace(named[0], "")
    if choices := re.search(r"Literal\[(.+?)\]", str(field.annotation)):
        text += ": " + choices[1].replace("'", "`")
    if former := former_name(field):
        text += f"; formerly `{_flag(former)}`, which still works"
    return flag, variable, "required" if field.is_required() else default, text


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _table(heads: Row, rows: Iterable[Row]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (heads, ("---",) * len(heads), *rows)]
    return "\n".join(lines).replace("|  |", "| |")


def _flags() -> str:
    groups: dict[str, dict[str, Row]] = {}
    for kind in (registry.KINDS["run", broker] for broker in reversed([*registry.BROKERS])):
        for name, field in kind.model_fields.items():
            bases = [base for base in kind.__mro__ if name in getattr(base, "model_fields", ())]
            title = str(bases[-1].__doc__).rstrip(".")
            groups.setdefault(title, {})[name] = _flag_row(name, field)
    tables = {title: _table(FLAG_HEADS, rows.values()) for title, rows in groups.items()}
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in reversed(tables.items()))


def _verbs() -> str:
    verbs: dict[Row, dict[str, str]] = {}
    for (verb, broker), kind in registry.KINDS.items():
        for name in kind.model_fields.keys() - registry.KINDS["run", broker].model_fields.keys():
            found = verbs.setdefault(_flag_row(name, kind.model_fields[name]), {})
            found[verb] = f"{found.get(verb, f'`{verb}`')} {broker}"
    every = " " + " ".join(registry.BROKERS)
    rows = [(*row, ", ".join(found.values()).replace(every, "")) for row, found in verbs.items()]
    return _table((*FLAG_HEADS, "verbs"), sorted(rows))


def _exits() -> str:
    text = str(__main__.__doc__).partition("Exit codes:")[2].replace("\n", " ").strip()
    return _table(("code", "meaning"), re.findall(r"((?:\d+, )*\d+) ([^;]+)", text))


def _reasons(page: str) -> str:  # their meanings are kept
    known = dict(re.findall(r"^\| (`\w+`) \| (.+) \|$", page, re.MULTILINE))
    names = [f"`{reason}`" for reason in get_args(Reason)]
    return _table(("reason", "meaning"), [(name, known.get(name, "")) for name in names])


def _metrics() -> str:
    settings = RunKafka(input_topic="images", output_topic="predictions")
    relay = Relay(daemon.make_policy(settings), daemon.draw_jitter, CANARY)
    health = Health(relay, float, lambda: None, stuck_after=1.0, stalled_after=1.0)
    health.note_iteration({"images/0": 1}, (), joined=True)
    broker = InstrumentedBroker(None, float, float)  # type: ignore[arg-type] # nobody polls it
    broker.predicted = Predicted({"Bag": 1}, "", (Answer(0, 1.0, 1.0),) * WINDOW)
    baseline = Baseline("", (1.0,), 1.0, 0.0, 0.1)
    info = {"version": "", **settings.describe_source()}
    rows = []
    collector = RelayCollector(relay, health, broker, float, float, info, lambda _: baseline)
    for each in collector.collect():
        labels = sorted({f"`{name}`" for one in each.samples for name in one.labels} - {"`le`"})
        name = each.name + {"counter": "_total", "info": "_info"}.get(each.type, "")
        rows.append((f"`{name}`", each.type, ", ".join(labels), each.documentation.rstrip(".")))
    return _table(("metric", "type", "labels", "meaning"), rows)


def render_page(page: str) -> str:
    """Return the page with all tables as the code has them now."""
    tables = {"flags": _flags(), "verbs": _verbs(), "exits": _exits(), "metrics": _metrics()}
    for name, table in {**tables, "reasons": _reasons(page)}.items():
        before, begin, rest = page.partition(f"<!-- begin {name} -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->\n")
        if not begin or not end:
            raise ValueError(f"{PAGE.name} has no place for the table {name}")
        page = f"{before}{begin}\n{table}\n\n{end}{after}"
    return page


def main(argv: list[str] | None = None) -> int:
    """Rewrite the page, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when it differs")
    asked, old = parser.parse_args(argv), PAGE.read_text(encoding="utf-8")
    new = render_page(old)
    if not asked.check:
        PAGE.write_text(new, encoding="utf-8")
    elif old != new:
        print("reference: docs/operating.md is not as the code: run python -m tests.reference")
    return int(asked.check and old != new)


if __name__ == "__main__":
    sys.exit(main())
