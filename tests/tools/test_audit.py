"""Findings are compared with those that were accepted; the bill of materials is whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing
from tools import audit
from tools.audit import Acceptance, AuditError, Finding, compare, read_accepted, read_findings

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 11, 29)
ONE, OTHER = Finding("PYSEC-1", "one"), Finding("GHSA-2", "other")


def accept(finding: Finding, expires: date = TODAY) -> Acceptance:
    return Acceptance(finding, "not reached", expires)


def test_a_finding_that_was_accepted_is_no_fault_until_its_last_day() -> None:
    assert compare({ONE}, [accept(ONE)], TODAY) == []
    assert compare(set(), [], TODAY) == []


def test_an_unknown_finding_is_a_fault() -> None:
    assert compare({ONE, OTHER}, [accept(ONE)], TODAY) == ["other: GHSA-2 is not in the list"]


def test_the_same_number_in_another_package_is_another_finding() -> None:
    assert len(compare({Finding("PYSEC-1", "two")}, [accept(ONE)], TODAY)) == 2


def test_an_expired_acceptance_is_a_fault() -> None:
    (sentence,) = compare({ONE}, [accept(ONE, date(2026, 11, 28))], TODAY)
    assert "PYSEC-1 expired on 2026-11-28" in sentence


def test_an_acceptance_of_what_is_not_found_any_more_is_a_fault() -> None:
    (sentence,) = compare(set(), [accept(ONE)], TODAY)
    assert "remove its entry" in sentence


def test_the_list_of_this_project_is_whole() -> None:
    entries = audit.ACCEPTED.read_text().splitlines().count("[[accepted]]")
    assert len(read_accepted(audit.ACCEPTED)) == entries


@pytest.mark.parametrize(
    "text",
    [
        "accepted = [{}]",
        "[[accepted",
        'accepted = [{id = "1", package = "a", reason = "", expires = 2027-01-31}]',
        'accepted = [{id = "1", package = "a", reason = "b", expires = "soon"}]',
    ],
)
def test_an_entry_without_reason_or_date_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "audit.toml").write_text(text)
    with pytest.raises(AuditError, match=r"audit\.toml"):
        read_accepted(tmp_path / "audit.toml")


def test_findings_are_read_from_the_report() -> None:
    report = {"dependencies": [{"name": "one", "version": "1", "vulns": [{"id": "PYSEC-1"}]}]}
    assert read_findings(report) == {ONE}


REPORTS: list[dict[str, Any]] = [
    {"dependencies": []},
    {"dependencies": [{"name": "one", "vulns": []}, {"name": "b", "skip_reason": "not found"}]},
]


@pytest.mark.parametrize("report", REPORTS)
def test_what_could_not_be_asked_about_never_passes(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(report)}'\n")
    program.chmod(0o755)
    assert audit.main(["--program", str(program)]) == 69
    assert "nothing was audited: no vulnerability data" in capsys.readouterr().err


def test_a_missing_program_names_the_command_that_brings_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main(["--program", str(tmp_path / "none")]) == 69
    assert "tools/setup.sh audit" in capsys.readouterr().err


def test_the_bill_of_materials_is_valid_and_holds_every_pinned_package_with_its_hashes(
    tmp_path: Path,
) -> None:
    venv = Path(os.environ.get("AUDIT_VENV", ROOT / "build" / "audit-venv"))
    if not (venv / "bin" / "cyclonedx-py").exists():
        missing(f"{venv} is not there: run `tools/setup.sh audit`")
    written = tmp_path / "sbom.json"
    command = ["make", "--no-print-directory", "-o", "audit-venv", "-o", "setup", "sbom"]
    command += [f"AUDIT_VENV={venv}", f"SBOM={written}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120, capture_output=True)
    bill = json.loads(written.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    found = {
        (one["name"], one["version"]): {
            h["content"] for link in one["externalReferences"] for h in link["hashes"]
        }
        for one in bill["components"]
    }
    lock = (ROOT / "requirements.txt").read_text()
    pinned = {
        (name, version): set(re.findall(r"sha256:([0-9a-f]{64})", rest))
        for name, version, rest in re.findall(
            r"^([\w.-]+)==([^\s;]+)(.*?)(?=^[\w.-]+==|\Z)", lock, re.MULTILINE | re.DOTALL
        )
    }
    assert found == pinned
