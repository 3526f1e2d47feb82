"""The faults of a cluster: what each cuts, what counts as a fault, and the network below them."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, cast

import pytest
import requests

from connectors.inference.torchserve import encode_multipart
from connectors.records import Image
from tests.chaos import network
from tests.chaos.answers import InstantService, classify_bytes, serve
from tests.chaos.brokers.kafka import cluster_faults
from tests.chaos.brokers.kafka.cluster import Node
from tests.chaos.brokers.kafka.cluster_faults import ClusterTarget, RelayHost
from tests.chaos.clock import ShiftedClock, make_clock
from tests.chaos.goodput import Sample, find_longest_silence
from tests.chaos.load import PICTURES, POISON
from tests.chaos.scenarios import cluster
from tests.chaos.schedule import Fault, Kind
from tests.chaos.test_chaos import GOOD
from tools.servers.process import ROOT, Process, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.brokers.kafka.cluster import KafkaCluster
    from tests.chaos.network import Chain

DROPPED_S, REACHED_S = 0.2, 10.0  # to wait for an answer that must not come, or must


class FakeHost:
    """A host that notes what it drops."""

    def __init__(self, address: str, packets: int = 7) -> None:
        self.address = address
        self.packets = packets
        self.dropped: list[tuple[Chain, str | None]] = []
        self.healed = 0

    def drop(self, chain: Chain, peer: str | None) -> None:
        self.dropped.append((chain, peer))

    def heal(self) -> int:
        self.healed += 1
        return self.packets


class FakeProcess:
    """A broker's process."""

    def __init__(self) -> None:
        self.running = True

    def alive(self) -> bool:
        return self.running

    def start(self) -> None:
        self.running = True


class FakeCluster:
    """Three brokers; the first leads everything and coordinates groups, the last transactions."""

    def __init__(self, tmp_path: Path) -> None:
        hosts = [FakeHost(f"10.0.0.{number}") for number in (1, 2, 3)]
        self.hosts = hosts
        self.nodes = [
            Node(number, cast("Any", host), tmp_path, cast("Process", FakeProcess()))
            for number, host in enumerate(hosts, 1)
        ]
        self.whole = True
        self.members = 2

    def find_leader(self, topic: str, partition: int) -> Node:
        assert topic == "images"
        assert partition in range(3)
        return self.nodes[0]

    def find_group_coordinator(self, group: str) -> Node:
        assert group == "chaos"
        return self.nodes[0]

    def find_transaction_coordinator(self, transactional_id: str) -> Node:
        assert transactional_id in {"chaos-relay-0", "chaos-relay-1"}
        return self.nodes[2]

    def is_whole(self) -> bool:
        return self.whole

    def count_members(self, group: str) -> int:
        assert group == "chaos"
        return self.members

    def require_alive(self) -> None:
        pass


class FakeClock:
    """A clock that notes its jumps."""

    def __init__(self) -> None:
        self.jumps: list[float] = []

    def shift(self, seconds: float) -> None:
        self.jumps.append(seconds)


class GrowingSamples(list[Sample]):
    """An outcome more each time somebody looks."""

    def __bool__(self) -> bool:
        self.append(Sample(0.0, len(self)))
        return True


class Struck:
    """A target, and all that it can strike."""

    def __init__(self, tmp_path: Path) -> None:
        self.cluster = FakeCluster(tmp_path)
        self.relays = [FakeHost("10.0.1.1"), FakeHost("10.0.1.2")]
        self.clock = FakeClock()
        self.lines: list[str] = []
        self.target = ClusterTarget(
            cast("KafkaCluster", self.cluster),
            [RelayHost(cast("Any", host), f"relay-{n}") for n, host in enumerate(self.relays)],
            cast("Any", self.clock),
            GrowingSamples(),
            self.lines.append,
        )

    def inject(self, kind: Kind, times: int = 1) -> bool:
        fault = Fault(1.0, kind, 0.0, 0)
        return [self.target.inject(fault, Event()) for _ in range(times)] == [True] * times

    def list_drops(self) -> dict[str, list[tuple[Chain, str | None]]]:
        hosts = [*self.cluster.hosts, *self.relays]
        return {host.address: host.dropped for host in hosts if host.dropped}


@pytest.fixture
def struck(tmp_path: Path) -> Struck:
    return Struck(tmp_path)


LEADER, FOLLOWER, THIRD = "10.0.0.1", "10.0.0.2", "10.0.0.3"
BOTH_WAYS: tuple[Chain, Chain] = "INPUT", "OUTPUT"


def test_a_leader_is_cut_from_everybody(struck: Struck) -> None:
    assert struck.inject("leader cut")
    assert struck.list_drops() == {LEADER: [("INPUT", None), ("OUTPUT", None)]}


def test_each_follower_is_cut_from_its_leader_alone(struck: Struck) -> None:
    assert struck.inject("follower cut", 2)
    assert struck.list_drops() == {
        follower: [(way, LEADER) for way in BOTH_WAYS] for follower in (FOLLOWER, THIRD)
    }


@pytest.mark.parametrize(
    ("number", "drops"),
    [
        (1, [("OUTPUT", FOLLOWER), ("OUTPUT", THIRD)]),
        (2, [("INPUT", FOLLOWER), ("INPUT", THIRD)]),
        (3, [("INPUT", "10.0.1.1"), ("INPUT", "10.0.1.2")]),
    ],
)
def test_of_one_way_cuts_each_round_has_another_direction(
    struck: Struck, number: int, drops: list[tuple[Chain, str]]
) -> None:
    struck.inject("one-way cut", number - 1)
    struck.cluster.hosts[0].dropped.clear()
    assert struck.inject("one-way cut")
    assert struck.list_drops() == {LEADER: drops}


def test_a_relay_is_cut_from_the_coordinator_of_its_group_then_of_its_transactions(
    struck: Struck,
) -> None:
    assert struck.inject("coordinator cut", 2)
    assert struck.list_drops() == {
        "10.0.1.1": [(way, LEADER) for way in BOTH_WAYS],
        "10.0.1.2": [(way, THIRD) for way in BOTH_WAYS],
    }


def test_a_cut_that_drops_no_packet_has_not_happened(struck: Struck) -> None:
    struck.cluster.hosts[0].packets = 0
    assert not struck.inject("leader cut")
    assert struck.cluster.hosts[0].healed == 1


def test_a_cut_is_healed_even_when_the_run_is_stopped(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    over = Event()
    monkeypatch.setattr(over, "wait", stop)
    with pytest.raises(KeyboardInterrupt):
        struck.target.inject(Fault(1.0, "leader cut", 5.0, 0), over)
    assert struck.cluster.hosts[0].healed == 1


def test_a_broker_that_ends_of_a_full_disk_is_started_again_with_room(
    struck: Struck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = cast("FakeProcess", struck.cluster.nodes[0].process)

    def fill(node: Node) -> None:
        (node.disk / "filler").touch()
        process.running = False

    monkeypatch.setattr(Node, "fill_disk", fill)
    assert struck.inject("disk full")
    assert process.running
    assert not (tmp_path / "filler").exists()
    assert struck.target.strikes[0].what == "broker 1, which ended"


def test_a_broker_that_does_not_mind_its_full_disk_was_not_struck(
    struck: Struck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Node, "fill_disk", lambda _: None)
    assert not struck.inject("disk full")


def test_a_clock_jumps_ahead_and_back_and_behind(struck: Struck) -> None:
    assert struck.inject("clock jump", 3)
    assert struck.clock.jumps == [7_200, 0, -7_200, 0, 86_400, 0]
    assert struck.target.strikes[1].what == "relay-0, -2 h and back"


def test_a_clock_is_as_far_off_as_its_file_says_and_moves_with_it(tmp_path: Path) -> None:
    shifted = ShiftedClock(tmp_path / "clock")
    now = make_clock(tmp_path / "clock", lambda: 1_000.0)
    assert now() == 1_000
    shifted.shift(-7_200)
    assert now() == -6_200


def test_a_program_runs_by_its_shifted_clock(tmp_path: Path) -> None:
    shifted = ShiftedClock(tmp_path / "clock")
    shifted.shift(86_400 * 365)
    argv = shifted.command([sys.executable, "-m", "tests.chaos.test_cluster", "argument"])
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    wall, argument = done.stdout.split()
    assert float(wall) > time.time() + 86_400 * 364
    assert argument == "argument"


@pytest.mark.parametrize(("whole", "members"), [(False, 2), (True, 1)])
def test_nothing_is_cut_while_a_replica_lags_or_a_relay_is_missing(
    struck: Struck, monkeypatch: pytest.MonkeyPatch, *, whole: bool, members: int
) -> None:
    struck.cluster.whole, struck.cluster.members = whole, members
    monkeypatch.setattr(cluster_faults, "REPAIR_TIMEOUT_S", 0.0)
    with pytest.raises(StackError, match="before leader cut all is not whole within 0 s"):
        struck.inject("leader cut")
    assert struck.list_drops() == {}


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_ends_where_all_does_not_become_whole_or_nothing_comes_out(
    struck: Struck, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    def heal(_: FakeHost) -> int:
        struck.cluster.whole = whole
        return 1

    monkeypatch.setattr(struck.target, "_samples", [Sample(0.0, 7)])
    monkeypatch.setattr(FakeHost, "heal", heal)
    monkeypatch.setattr(cluster_faults, "REPAIR_TIMEOUT_S", 0.0)
    why = "no outcome comes" if whole else "all is not whole"
    with pytest.raises(StackError, match=rf"after leader cut \(broker 1 and everybody\) {why}"):
        struck.inject("leader cut")


def test_each_fault_is_said_in_one_line(struck: Struck) -> None:
    struck.inject("leader cut")
    (line,) = struck.lines
    assert line.startswith("leader cut: broker 1 and everybody; for 0 s, 7 packets dropped; whole")


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cluster.add_arguments(parser, "kafka")
    return parser.parse_args(flags)


def test_each_fault_comes_once_in_each_round() -> None:
    case = cluster.select_case(parse("--rounds", "3"))
    kinds = [fault.kind for fault in case.make_schedule()]
    assert kinds == [*cluster.KINDS] * 3
    assert case.count_required() == dict.fromkeys(cluster.KINDS, 3)
    assert case.make_schedule()[-1].at < case.duration


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_rounds_that_are_none_are_refused_in_one_sentence(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(f"--rounds={text}")
    assert f"{text} is no number of rounds: give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lost", "doubled", "results", "noticed"),
    [(1, 0, 9, True), (0, 1, 9, False), (0, 0, 9, False), (9, 0, 0, False)],
)
def test_the_control_is_noticed_by_what_it_lost_and_nothing_else(
    lost: int, doubled: int, results: int, *, noticed: bool
) -> None:
    report = replace(GOOD, results=results, findings={"lost": lost, "doubled": doubled})
    assert cluster.judge_control(report).passed == noticed


@pytest.mark.parametrize(
    ("ats", "since", "silence"),
    [
        ([1, 2, 3, 4], 1.5, 0.0),
        ([1, 1, 1, 2, 2], 0.0, 2.0),
        ([1, 2, 2, 2], 2.5, 2.0),  # it had begun before
        ([1, 1, 1, 1, 2, 3], 4.5, 0.0),  # it was over before
    ],
)
def test_the_longest_silence_since_a_moment_is_found(
    ats: list[int], since: float, silence: float
) -> None:
    samples = [Sample(float(at), total) for at, total in enumerate(ats, 1)]
    assert find_longest_silence(samples, since) == silence


def test_the_instant_service_tells_images_apart_and_knows_what_is_none() -> None:
    images = [PICTURES[1], POISON[0], PICTURES[0]]
    kind, body = encode_multipart([Image(image, None) for image in images])
    with serve(InstantService(POISON, "127.0.0.1")) as service:
        answer = requests.post(service.url, body, headers={"Content-Type": kind}, timeout=5)
    first, second, third = json.loads(answer.content)["predictions"]
    assert [first["class"], third["class"]] == [classify_bytes(one) for one in PICTURES[::-1]]
    assert first["class"] != third["class"]
    assert second["error"]["code"] == "not_an_image"


@pytest.fixture
def opened(network_namespaces: None) -> Iterator[network.Network]:  # noqa: ARG001 - the right to it
    with network.open_network() as found:
        yield found


def is_reached(address: str, timeout: float = REACHED_S) -> bool:
    """Say whether a host answers, if only that nobody listens; `timeout`: seconds."""
    try:
        socket.create_connection((address, 9), timeout).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("chain", BOTH_WAYS)
@pytest.mark.parametrize("peer", [network.GATEWAY, None])
def test_packets_are_dropped_in_silence_and_counted_until_the_host_is_healed(
    opened: network.Network, chain: Chain, peer: str | None
) -> None:
    host = opened.add_host("one", 31)
    assert is_reached(host.address)
    host.drop(chain, peer)
    assert not is_reached(host.address, DROPPED_S)
    assert host.heal() > 0
    assert is_reached(host.address)


def test_who_is_cut_from_one_host_still_reaches_another(opened: network.Network) -> None:
    host = opened.add_host("one", 31)
    host.drop("INPUT", opened.add_host("other", 32).address)
    assert is_reached(host.address)
    assert host.heal() == 0


@pytest.mark.usefixtures("network_namespaces")
def test_what_a_run_left_that_was_killed_is_removed_by_the_next_one(tmp_path: Path) -> None:
    with ExitStack() as killed:
        host = network.Network(killed).add_host("one", 31)
        killed.enter_context(network.mount_disk("one", tmp_path / "disk", 1))
        process = Process(host.command(["sleep", "600"]), tmp_path / "log").start()
        wait_for_program(process.child, "sleep")
        killed.pop_all()  # nobody closes it
    with network.open_network():
        assert process.child.wait(5) == -9
        assert not (tmp_path / "disk").is_mount()
        names = network.run_command("ip", "netns", "list").split()
        assert [name for name in names if name.startswith(network.PREFIX)] == [network.SWITCH]
    assert network.PREFIX not in network.run_command("ip", "netns", "list")


def wait_for_program(child: subprocess.Popen[bytes], name: str) -> None:
    """Return when `ip` has become the program that it was told to run."""
    while child.poll() is None and Path(f"/proc/{child.pid}/comm").read_text().strip() != name:
        pass


def test_one_machine_has_one_network_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "LOCK", tmp_path / "lock")
    second = network.hold_lock(0.0)
    with network.hold_lock(), pytest.raises(StackError, match="another run has the network"):
        second.__enter__()


def test_a_program_that_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", {"ip": "/sbin/ip"}.get)
    with pytest.raises(StackError, match="iptables is not there: run `apt-get install iptables`"):
        network.require_programs()


def test_a_command_that_is_refused_is_named_with_its_reason() -> None:
    with pytest.raises(network.CommandError, match=r"ls /nowhere failed: .*No such file"):
        network.run_command("ls", "/nowhere")


if __name__ == "__main__":  # of the test of a program's clock
    print(time.time(), *sys.argv[1:])
