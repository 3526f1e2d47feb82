"""Fetches jars by Maven, once, for the servers that the tests and the demo start."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

from tools.servers.process import StackError

if TYPE_CHECKING:
    from pathlib import Path


def fetch_jars(pom: Path, build: Path) -> Path:
    """Return the folder of the jars that `pom` names; fetches them when they or the pom are new."""
    libs, known = build / "libs", build / "pom.xml"
    if libs.exists() and known.exists() and known.read_bytes() == pom.read_bytes():
        return libs
    if shutil.which("mvn") is None:
        raise StackError(
            f"there is no mvn to fetch what {pom.parent.name} needs: `apt-get install -y maven` "
            "brings it"
        )
    partial = build / "libs.partial"
    shutil.rmtree(partial, ignore_errors=True)
    _copy_dependencies(pom, partial)
    shutil.rmtree(libs, ignore_errors=True)
    partial.rename(libs)
    shutil.copyfile(pom, known)
    return libs


def _copy_dependencies(pom: Path, folder: Path) -> None:
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    maven = ["mvn", "--quiet", "--batch-mode", "--file", str(pom), *goal]
    done = subprocess.run(maven, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise StackError(f"Maven fetched nothing; repeat `{' '.join(maven)}`:\n{done.stdout}")
