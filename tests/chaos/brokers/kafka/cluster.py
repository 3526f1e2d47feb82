"""Kafka on several hosts of a network of namespaces; every topic on three of them.

Each node is broker and controller. Its data lie on a small disk of its own, which can be filled.
"""

from __future__ import annotations

import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from tests.chaos.network import mount_disk
from tools.servers.kafka import format_storage, make_command
from tools.servers.process import Process, StackError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from tests.chaos.network import Host, Network

REPLICAS = 3
MIN_IN_SYNC = 2
START_TIMEOUT_S = 120.0
POLL_INTERVAL_S = 0.5
DISK_MB = 256
FIRST_ADDRESS = 11
FILLER = "filler"

JVM = ["-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]

# A broker that is cut off is out of the in-sync replicas after 3 s if no controller hears it, and
# after 5 s if only the leader does not. Kafka's defaults are 9 and 30 s.
SERVER = """\
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=CONTROLLER://{address}:9093,PLAINTEXT://{address}:9092
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={min_in_sync}
offsets.topic.num.partitions=8
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=8
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={min_in_sync}
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
replica.lag.time.max.ms=5000
leader.imbalance.check.interval.seconds=15
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""


class Partition(NamedTuple):
    """Who holds a partition, by number of the node; -1: it has no leader now."""

    leader: int
    replicas: Sequence[int]
    in_sync: Sequence[int]


@dataclass
class Node:
    """One broker. `disk`: where its data lie; the rest is in `folder`."""

    number: int
    host: Host
    disk: Path
    process: Process

    def __str__(self) -> str:
        return f"broker {self.number}"

    def fill_disk(self) -> None:
        """Leave no byte free."""
        with suppress(OSError), (self.disk / FILLER).open("wb") as filler:  # no space left
            while True:
                filler.write(bytes(1 << 20))

    def kill(self) -> None:
        """Leave no process behind."""
        if hasattr(self.process, "child"):
            self.process.kill()

    def free_disk(self) -> None:
        """Make room again."""
        (self.disk / FILLER).unlink(missing_ok=True)


class KafkaCluster:
    """Several nodes; made by `open_cluster`."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.bootstrap_servers = ",".join(f"{node.host.address}:9092" for node in nodes)

    def find_node(self, number: int) -> Node:
        """Return the node of this number. Raises StackError when there is none."""
        found = next((node for node in self.nodes if node.number == number), None)
        if found is None:
            raise StackError(f"there is no broker {number}: a partition has no leader")
        return found

    def find_leader(self, topic: str, partition: int) -> Node:
        """Return who leads a partition."""
        return self.find_node(self.list_partitions()[topic, partition].leader)

    def find_group_coordinator(self, group: str) -> Node:
        """Return who coordinates a consumer group."""
        with self._admin() as admin:
            for node in self.nodes:
                groups = admin.list_groups(broker_ids=[node.number])
                if any(one["group_id"] == group for one in groups):
                    return node
        raise StackError(f"no broker coordinates the group {group}")

    def find_transaction_coordinator(self, transactional_id: str) -> Node:
        """Return who coordinates the transactions of a producer."""
        with self._admin() as admin:
            found = admin.describe_transactions([transactional_id])[transactional_id]
            return self.find_node(found.coordinator_id)

    def list_partitions(self) -> dict[tuple[str, int], Partition]:
        """Return who holds each partition of each topic."""
        with self._admin() as admin:
            return {
                (topic["name"], one["partition_index"]): Partition(
                    one["leader_id"], one["replica_nodes"], one["isr_nodes"]
                )
                for topic in admin.describe_topics()
                for one in topic["partitions"]
            }

    def is_whole(self) -> bool:
        """Say whether every replica of every partition is in sync."""
        with suppress(StackError):
            known = self.list_partitions().values()
            return all(sorted(one.replicas) == sorted(one.in_sync) for one in known)
        return False

    def count_members(self, group: str) -> int:
        """Return how many members share out the partitions; 0 while they do not agree."""
        with suppress(StackError), self._admin() as admin:
            found = admin.describe_groups([group])[group]
            return len(found["members"]) if found["group_state"] == "Stable" else 0
        return 0

    def start(self) -> None:
        """Start all nodes, and wait until they know each other."""
        for node in self.nodes:
            node.process.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._count_brokers() < len(self.nodes):
            self.require_alive()
            if time.monotonic() > deadline:
                tail = self.nodes[0].process.tail()
                raise StackError(f"the brokers do not see each other; a log ends with:\n{tail}")
            time.sleep(POLL_INTERVAL_S)

    def require_alive(self) -> None:
        """Raise StackError when a node has ended by itself."""
        for node in self.nodes:
            if not node.process.alive():
                tail = node.process.tail()
                raise StackError(f"broker {node.number} has ended; its log ends with:\n{tail}")

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic on REPLICAS nodes and wait until it is there."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=REPLICAS)
        with self._admin() as admin:
            admin.create_topics([topic], timeout_ms=10_000)
            admin.wait_for_topics([name], timeout_ms=10_000)

    def _count_brokers(self) -> int:
        with suppress(StackError), self._admin() as admin:
            return len(admin.describe_cluster()["brokers"])
        return 0

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        """Yield a client for questions. Raises StackError when the brokers do not answer."""
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self.bootstrap_servers,
                bootstrap_timeout_ms=5_000,
                request_timeout_ms=5_000,
            )
            try:
                yield admin
            finally:
                admin.close()
        except (KafkaError, OSError) as error:
            raise StackError(f"the brokers do not answer: {error!r}") from error


def open_cluster(network: Network, count: int, folder: Path, stack: ExitStack) -> KafkaCluster:
    """Start `count` nodes on hosts of their own; all of it ends with `stack`."""
    numbers = range(1, count + 1)
    hosts = [network.add_host(f"broker-{one}", FIRST_ADDRESS + one) for one in numbers]
    voters = ",".join(
        f"{one}@{host.address}:9093" for one, host in zip(numbers, hosts, strict=True)
    )
    cluster_id = secrets.token_urlsafe(16)
    nodes = []
    for number, host in zip(numbers, hosts, strict=True):
        home = folder / f"broker-{number}"
        shutil.rmtree(home, ignore_errors=True)
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        stack.enter_context(mount_disk(home.name, home / "disk", DISK_MB))
        node = _make_node(number, host, voters, home)
        format_storage(make_command(JVM), home / "server.properties", cluster_id)
        stack.callback(node.kill)
        nodes.append(node)
    cluster = KafkaCluster(nodes)
    cluster.start()
    return cluster


def _make_node(number: int, host: Host, voters: str, home: Path) -> Node:
    config = home / "server.properties"
    config.write_text(
        SERVER.format(
            number=number,
            voters=voters,
            address=host.address,
            data=home / "disk" / "data",
            replicas=REPLICAS,
            min_in_sync=MIN_IN_SYNC,
        )
    )
    argv = host.command([*make_command(JVM), "kafka.Kafka", str(config)])
    log = home.with_name(f"{home.name}.log")
    return Node(number, host, home / "disk", Process(argv, log, cwd=home))
