"""The CPU and the memory of processes and of all their children, as the kernel counts them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Usage(NamedTuple):
    """CPU seconds since the processes began; resident bytes now."""

    cpu_s: float
    rss_bytes: int


def find_processes(pid: int) -> Iterator[psutil.Process]:
    """Yield a process and its descendants; nothing when it has ended."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        yield parent
        yield from parent.children(recursive=True)


def measure_process(process: psutil.Process) -> Usage:
    """Return what one process has used, and its ended children with it."""
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        cpu = times.user + times.system + times.children_user + times.children_system
        return Usage(cpu, process.memory_info().rss)
    return Usage(0.0, 0)


def measure_machine() -> float:
    """Return the CPU seconds that this machine has used since it began, whoever used them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def measure(pids: Mapping[str, Sequence[int]]) -> dict[str, Usage]:
    """Return the usage by name, of all processes that have it.

    They count with their descendants, but for those that have a name of their own.
    """
    named = {pid for some in pids.values() for pid in some}
    return {name: _sum(some, named) for name, some in pids.items()}


def _sum(pids: Sequence[int], named: set[int]) -> Usage:
    others = named - {*pids}
    found = [
        measure_process(one) for pid in pids for one in find_processes(pid) if one.pid not in others
    ]
    return Usage(sum(one.cpu_s for one in found), sum(one.rss_bytes for one in found))


def find_torchserve(pid: int) -> dict[str, list[int]]:
    """Return TorchServe's JVM and its workers; `pid`: of its launcher."""
    found: dict[str, list[int]] = {"worker": [], "jvm": []}
    for process in find_processes(pid):
        if any("model_service_worker" in word for word in process.cmdline()):
            found["worker"].append(process.pid)
        elif process.name() == "java":
            found["jvm"].append(process.pid)
    return found
