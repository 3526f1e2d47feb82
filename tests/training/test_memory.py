from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys, torch
from training.memory import keep_freed

def step():
    return len([torch.ones(4 * 2**20) for _ in range(8)])

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    assert keep_freed()
for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""
"""Ten steps that take and free eight blocks of 16 MiB; the kernel counts the pages it clears."""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory"
)
def test_what_a_step_frees_the_next_one_has_without_the_kernel() -> None:
    assert faults("kept") < 10 < faults("as ever")
