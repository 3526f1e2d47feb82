"""Fetches jars by Maven, once, for the servers that the tests and the demo start.

Beside each pom.xml lies jars.sha256, as `sha256sum *.jar` writes it: what is fetched is that.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from typing import TYPE_CHECKING

from tools.servers.process import StackError

if TYPE_CHECKING:
    from pathlib import Path


def fetch_jars(pom: Path, build: Path) -> Path:
    """Return the folder of the jars that `pom` names; fetches them when they or the pom are new.

    Raises StackError without Maven, without an answer, and when a jar is not the wanted one.
    """
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
    check_jars(partial, pom.with_name("jars.sha256"))
    shutil.rmtree(libs, ignore_errors=True)
    partial.rename(libs)
    shutil.copyfile(pom, known)
    return libs


def check_jars(folder: Path, sums: Path) -> None:
    """Raise StackError unless `folder` holds the jars of the list `sums`, all and no other."""
    wanted = {name: digest for digest, name in map(str.split, sums.read_text().splitlines())}
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if wrong:
        raise StackError(
            f"{', '.join(wrong)}: not as {sums.parent.name}/{sums.name} says: after a change of "
            f"pom.xml write it anew, `sha256sum *.jar`; else do not trust what was fetched"
        )


def _copy_dependencies(pom: Path, folder: Path) -> None:
    goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    maven = ["mvn", "--quiet", "--batch-mode", "--strict-checksums", "--file", str(pom), *goal]
    done = subprocess.run(maven, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise StackError(f"Maven fetched nothing; repeat `{' '.join(maven)}`:\n{done.stdout}")
