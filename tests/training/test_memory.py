from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

KEPT = """
import ctypes, torch
from training.memory import tune_malloc

class Heap(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Heap

assert tune_malloc()
for _ in range(3):
    blocks = [torch.ones(4 * 2**20) for _ in range(8)]
    del blocks
print(mallinfo().fordblks)
"""
"""Takes and frees eight blocks of 16 MiB; the C library counts, since not every kernel does."""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason=f"only glibc since 2.33 can be asked, this is {platform.libc_ver()}",
)
def test_what_a_step_frees_is_kept_for_the_next_one() -> None:
    """Without being told, glibc keeps it only when something else happens to lie above it."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) >= 8 * 16 * 2**20
