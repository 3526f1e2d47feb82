"""The alert rules: each fires and stays silent, and each has its runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from connectors.drift import ALERT_ABOVE, Drift
from tests.conftest import missing
from tests.drift.__main__ import fix_threshold, read_thresholds
from tests.test_docs import anchors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
CASES = RULES.with_name("rules_test.yaml")
DRIFT = ROOT / "docs" / "results" / "drift.txt"
GOLDEN = ROOT / "tests" / "connectors" / "metrics.txt"
Rule = dict[str, Any]


def read_rules() -> list[Rule]:
    """Return the rules of the only group."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[Rule] = group["rules"]
    return rules


ALERTS = [rule for rule in read_rules() if "alert" in rule]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own tool."""
    if not shutil.which("promtool"):
        missing("promtool is not there: run tools/setup.sh programs")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_rules_are_such_as_prometheus_takes() -> None:
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr


def test_each_rule_fires_and_stays_silent_as_written_down() -> None:
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    checks = [check for case in cases for check in case["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert fires == silent == {rule["alert"] for rule in ALERTS}


def mutate_thresholds(rule: Rule) -> Iterator[Rule]:
    """Give the rule with each of its numbers a little lower and a little higher."""
    for found in re.finditer(r"(?<=[<>] )[\d.]+", rule["expr"]):
        value = float(found[0])
        for other in (value * 0.75, value * 1.5) if value else (-1, 1):
            text = rule["expr"]
            yield {**rule, "expr": f"{text[: found.start()]}{other:g}{text[found.end() :]}"}
    if minutes := re.fullmatch(r"(\d+)m", rule.get("for", "")):
        for factor in (30, 120):
            yield {**rule, "for": f"{int(minutes[1]) * factor}s"}


class Mutant(NamedTuple):
    """All rules, of which the one with this name has another threshold."""

    name: str
    rules: Sequence[Rule]

    def write(self, folder: Path) -> Path:
        """Write the rules, and the cases that look at the changed one; return the latter's file."""
        folder.mkdir()
        groups = {"groups": [{"name": "fmnist", "rules": list(self.rules)}]}
        (folder / RULES.name).write_text(yaml.safe_dump(groups))
        cases = yaml.safe_load(CASES.read_text())
        cases["tests"] = [case for case in cases["tests"] if self.name in list_alerts(case)]
        file = folder / CASES.name
        file.write_text(yaml.safe_dump(cases))
        return file


def list_alerts(case: Mapping[str, Any]) -> set[str]:
    """Return the alerts that a case looks at."""
    return {check["alertname"] for check in case["alert_rule_test"]}


def mutants() -> Iterator[Mutant]:
    """Give each threshold of each rule, changed."""
    rules = read_rules()
    for place, rule in enumerate(rules):
        for mutant in mutate_thresholds(rule):
            yield Mutant(rule["alert"], [*rules[:place], mutant, *rules[place + 1 :]])


def test_a_mutant_of_each_threshold_is_noticed(tmp_path: Path) -> None:
    planted = list(mutants())
    assert {mutant.name for mutant in planted} == {rule["alert"] for rule in ALERTS}
    files = [mutant.write(tmp_path / str(number)) for number, mutant in enumerate(planted)]
    done = promtool("test", "rules", *files)
    # What fails is said on stderr.
    verdicts = re.findall(r"Unit Testing: +\S+/(\d+)/\S+\s+(SUCCESS)?", done.stdout)
    assert len(verdicts) == len(planted), done.stdout + done.stderr
    assert done.stderr.count("FAILED:") >= len(planted)
    assert [difference(planted[int(number)].rules) for number, success in verdicts if success] == []


def difference(rules: Sequence[Rule]) -> Mapping[str, Any]:
    """Return the rule that is not as it was."""
    return next(rule for rule in rules if rule not in read_rules())


def test_the_report_of_drift_reads_the_thresholds_of_the_rules() -> None:
    limits = read_thresholds()
    assert list(limits) == list(Drift._fields)
    assert limits == ALERT_ABOVE._asdict()  # which the live page shows
    assert all(0 < limit < 0.1 for limit in limits.values())


def test_the_thresholds_of_drift_follow_from_validation_images() -> None:
    validation, _, _ = DRIFT.read_text().partition("test images")
    found = re.findall(r"^(\w+)(?: +[\d.]+){2} +([\d.]+) +[\d.]+$", validation, re.MULTILINE)
    assert {name: fix_threshold(float(largest)) for name, largest in found} == read_thresholds()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_a_severity_a_sentence_and_a_runbook(rule: Rule) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"].endswith(".")
    page, _, heading = rule["annotations"]["runbook_url"].partition("#")
    assert heading in anchors(ROOT / page)


def test_each_rule_asks_for_metrics_that_a_relay_has() -> None:
    there = set(re.findall(r"^(connector_\w+?)(?:_bucket)?\b", GOLDEN.read_text(), re.MULTILINE))
    recorded = {rule["record"] for rule in read_rules() if "record" in rule}
    asked = {
        name
        for rule in read_rules()
        for name in re.findall(r"(?:\w+:)*connector_\w+(?::\w+)*", rule["expr"])
    }
    assert asked <= there | recorded
