"""Hosts of a network of their own, each a network namespace, whose packets can be dropped.

All hosts hang on one bridge, which has a namespace too, so no firewall and no setting of the
machine touches their packets, and to remove the namespaces is to remove everything. The machine
itself is on the network as GATEWAY. Every name begins with PREFIX, by which leftovers of a run that
was killed are found. Needs root, iproute2 and iptables.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PREFIX = "fmnist-chaos-"
SWITCH = f"{PREFIX}switch"
NETWORK = "198.18.22"  # of the range that RFC 2544 sets aside for tests of networks
GATEWAY = f"{NETWORK}.1"
"""The address of the machine itself."""

LINK = "fmchaos0"
MOUNTS = Path("/proc/mounts")
LOCK = Path(tempfile.gettempdir()) / f"{PREFIX}network.lock"
LOCK_TIMEOUT_S = 300.0  # of several checkouts on one machine
LOCK_INTERVAL_S = 0.5
COMMAND_TIMEOUT_S = 20.0
PACKAGES = {"ip": "iproute2", "iptables": "iptables"}

Chain = Literal["INPUT", "OUTPUT"]
"""Which way packets go: those that a host would receive, those that it sends."""


class CommandError(StackError):
    """A command failed; the message holds its last line."""


def run_command(*argv: str) -> str:
    """Return what a command prints. Raises CommandError."""
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise CommandError(f"{' '.join(argv)} failed: {''.join(why) or done.returncode}")
    return done.stdout


def require_programs() -> None:
    """Raise StackError when a program that this needs is not installed."""
    for program, package in PACKAGES.items():
        if shutil.which(program) is None:
            raise StackError(f"{program} is not there: run `apt-get install {package}`")


def may_make_networks() -> bool:
    """Say whether the kernel lets this process make namespaces, links, filters and mounts."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder, ExitStack() as stack:
        try:
            stack.enter_context(open_network()).add_host("probe", 99)
            stack.enter_context(mount_disk("probe", Path(folder), 1))
        except CommandError:
            return False
    return True


@dataclass(frozen=True)
class Host:
    """One namespace with one address. Its own loopback address is never filtered."""

    namespace: str
    address: str

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return what runs a command there; its process id is that of the command."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def drop(self, chain: Chain, peer: str | None = None) -> None:
        """Drop the packets from (INPUT) or to (OUTPUT) an address; None: all but its own."""
        device, end = ("-i", "-s") if chain == "INPUT" else ("-o", "-d")
        which = ["!", device, "lo"] if peer is None else [end, peer]
        self._filter("-A", chain, *which, "-j", "DROP")

    def heal(self) -> int:
        """Let all packets through again; return how many were dropped."""
        lines = self._filter("-nvxL").splitlines()
        self._filter("-F")
        rules = (line.split() for line in lines)
        return sum(int(rule[0]) for rule in rules if len(rule) > 2 and rule[2] == "DROP")

    def _filter(self, *arguments: str) -> str:
        return run_command(*self.command(["iptables", "-w", "5", *arguments]))


class Network:
    """The bridge, and the hosts on it; made by `open_network`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._add_namespace(SWITCH)
        _ip(SWITCH, "link", "add", "bridge", "type", "bridge")
        _ip(SWITCH, "link", "set", "bridge", "up")
        stack.callback(_remove_link)
        run_command("ip", "link", "add", LINK, "type", "veth", "peer", "machine", "netns", SWITCH)
        run_command("ip", "address", "add", f"{GATEWAY}/24", "dev", LINK)
        run_command("ip", "link", "set", LINK, "up")
        self._plug_in("machine")

    def add_host(self, name: str, number: int) -> Host:
        """Add a host; `number`: the last part of its address."""
        host = Host(f"{PREFIX}{name}", f"{NETWORK}.{number}")
        self._add_namespace(host.namespace)
        peer = ["peer", "name", name, "netns", SWITCH]
        _ip(host.namespace, "link", "add", "eth0", "type", "veth", *peer)
        _ip(host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip(host.namespace, "link", "set", "lo", "up")
        _ip(host.namespace, "link", "set", "eth0", "up")
        self._plug_in(name)
        return host

    def _add_namespace(self, name: str) -> None:
        self._stack.callback(_remove_namespace, name)
        run_command("ip", "netns", "add", name)

    def _plug_in(self, port: str) -> None:
        _ip(SWITCH, "link", "set", port, "master", "bridge")
        _ip(SWITCH, "link", "set", port, "up")


def _ip(namespace: str, *arguments: str) -> None:
    run_command("ip", "-n", namespace, *arguments)


@contextmanager
def open_network() -> Iterator[Network]:
    """Yield an empty network, and remove all of it; leftovers are removed first.

    A machine has one at a time. Raises StackError when another process keeps it for long.
    """
    with hold_lock():
        remove_leftovers()
        with ExitStack() as stack:
            yield Network(stack)


@contextmanager
def hold_lock(timeout: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Be the only process with a network until the end of the block; `timeout`: seconds."""
    deadline = time.monotonic() + timeout
    with LOCK.open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StackError(f"another run has the network ({LOCK}): wait for it") from None
            time.sleep(LOCK_INTERVAL_S)
        yield


def remove_leftovers() -> None:
    """End what runs in namespaces of a run that was killed; remove these, and its disks.

    Whoever calls it has the lock.
    """
    if shutil.which("ip") is None:
        return
    _remove_link()
    for line in run_command("ip", "netns", "list").splitlines():
        if line.startswith(PREFIX):
            _remove_namespace(line.split()[0])
    for line in MOUNTS.read_text().splitlines():
        source, folder = line.split()[:2]
        if source.startswith(PREFIX):
            run_command("umount", "--lazy", folder)


def _remove_link() -> None:
    """Remove the link at once; with a namespace the kernel removes it some time later."""
    with suppress(CommandError):
        run_command("ip", "link", "del", LINK)


def _remove_namespace(name: str) -> None:
    """Kill what still runs there, and remove it; if it was not made, do nothing."""
    with suppress(CommandError):
        for pid in run_command("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run_command("ip", "netns", "del", name)


@contextmanager
def mount_disk(name: str, folder: Path, megabytes: int) -> Iterator[Path]:
    """Yield `folder`, a small disk in memory until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={megabytes}m,mode=700"
    run_command("mount", "-t", "tmpfs", "-o", options, f"{PREFIX}{name}", str(folder))
    try:
        yield folder
    finally:
        run_command("umount", "--lazy", str(folder))
