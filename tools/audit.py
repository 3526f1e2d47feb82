"""Compares the lock file with known vulnerabilities: `make audit`, `python -m tools.audit`.

Each finding stands in docs/audit.toml, with a reason and an expiry date, or the exit code is 1.
69: the vulnerability data cannot be had, and nothing was audited.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "docs" / "audit.toml"
PROGRAM = ROOT / "build" / "audit-venv" / "bin" / "pip-audit"
UNAVAILABLE = 69
TIMEOUT_S = 600


class Finding(NamedTuple):
    """A vulnerability of a pinned package, as pip-audit names both."""

    id: str
    package: str


class Acceptance(NamedTuple):
    """A finding that is known: why it does no harm, and the last day on which that holds."""

    finding: Finding
    reason: str
    expires: date


class AuditError(Exception):
    """Nothing was audited; the text says why and what to do."""


def compare(findings: set[Finding], accepted: list[Acceptance], today: date) -> list[str]:
    """Return a sentence for each finding without acceptance, and each expired or stale one."""
    known = {one.finding for one in accepted}
    return [
        *(f"{one.package}: {one.id} is not in the list" for one in sorted(findings - known)),
        *(
            f"{one.finding.package}: the acceptance of {one.finding.id} expired on {one.expires}"
            for one in accepted
            if one.expires < today
        ),
        *(
            f"{one.finding.package}: {one.finding.id} is not found any more: remove its entry"
            for one in accepted
            if one.finding not in findings
        ),
    ]


def read_accepted(path: Path) -> list[Acceptance]:
    """Return the entries of the list; raises AuditError when one lacks a key or a reason."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", [])
        read = [
            Acceptance(Finding(one["id"], one["package"]), one["reason"], one["expires"])
            for one in entries
        ]
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise AuditError(f"{path.name}: an entry is not whole ({error})") from error
    for one in read:
        if not one.reason or type(one.expires) is not date:
            raise AuditError(
                f"{path.name}: {one.finding.id} needs a reason and a date, expires = 2027-01-31"
            )
    return read


def read_findings(report: dict[str, Any]) -> set[Finding]:
    """Return what pip-audit found; raises AuditError when it could not ask about a package.

    pip-audit itself calls a package "skipped" of which its source knows nothing, and is content.
    """
    packages = report["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    if skipped or not packages:
        raise AuditError(
            f"no vulnerability data for {len(skipped)} of {len(packages)} packages: run it where "
            "https://pypi.org can be reached"
        )
    return {Finding(v["id"], one["name"]) for one in packages for v in one["vulns"]}


def ask(program: Path, lock: Path) -> dict[str, Any]:
    """Return pip-audit's report on a lock file; raises AuditError when there is none."""
    command = [str(program), "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        report: dict[str, Any] = json.loads(done.stdout)
    except FileNotFoundError:
        raise AuditError(f"{program} is not there: tools/setup.sh audit") from None
    except subprocess.TimeoutExpired:
        raise AuditError(f"pip-audit did not end within {TIMEOUT_S} s: repeat it") from None
    except json.JSONDecodeError:
        raise AuditError(f"pip-audit could not ask: {done.stderr[-300:].strip()}") from None
    return report


def main(argv: list[str] | None = None) -> int:
    """Audit the lock file; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description=__doc__)
    parser.add_argument("--program", type=Path, default=PROGRAM, help="where pip-audit is")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.txt")
    asked = parser.parse_args(argv)
    try:
        accepted = read_accepted(ACCEPTED)
        findings = read_findings(ask(asked.program, asked.lock))
    except AuditError as error:
        print(f"audit: nothing was audited: {error}", file=sys.stderr)
        return UNAVAILABLE
    wrong = compare(findings, accepted, datetime.now(UTC).date())
    for sentence in wrong:
        print(f"audit: {sentence}", file=sys.stderr)
    print(f"audit: {len(findings)} findings, {len(wrong)} to decide on")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
