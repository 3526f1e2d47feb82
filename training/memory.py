"""Settings of the C library's allocator: memory that one step frees is there for the next one."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""mallopt's names for the two settings (malloc.h of glibc)."""

LARGEST_THRESHOLD = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
"""Bytes; glibc takes no larger one for what it maps from the kernel block by block."""

NEVER = 2**31 - 1


def tune_malloc() -> bool:
    """Let this process keep the large blocks that it frees; return whether it can be told to.

    A training step asks for the same blocks of some megabytes again and again. glibc maps each anew
    and gives it back (mallopt(3)), so the kernel clears all their pages in every step: a fifth of
    the time of a narrow network. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    settings = {MMAP_THRESHOLD: LARGEST_THRESHOLD, TRIM_THRESHOLD: NEVER}
    return all(mallopt(setting, value) == 1 for setting, value in settings.items())
