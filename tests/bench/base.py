"""An older tree beside this one: its code, and an archive of its own.

It trains for some seconds, since a tree may not read the runs of another. The network of a short
budget is the same, and what it has learned does not change how fast it is. What the older tree
imports, and ours does not, must be installed by hand.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tools.servers.process import ROOT, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 300.0
TRAINING = "20s"


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out below `folder` with its archive built; remove it afterwards.

    Raises StackError when git does not know it, or the tree makes no archive.
    """
    tree = folder / "base"
    _run(["git", "worktree", "add", "--detach", str(tree), commit], ROOT)
    try:
        train = ["train", "--budget", TRAINING, "--min-accuracy", "0"]
        _run([sys.executable, "-m", "training", *train], tree)
        _run([sys.executable, "-m", "tools.archive"], tree)
        yield tree
    finally:
        _run(["git", "worktree", "remove", "--force", str(tree)], ROOT)


def _run(command: list[str], tree: Path) -> None:
    environment = {"DATA_DIR": str(ROOT / "data"), **os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise StackError(
            f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}"
        )
