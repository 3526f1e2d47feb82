"""Apache Kafka for tests, the demo and `make up`: one node, no Docker, nothing left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import KafkaError

from tools.servers.jars import fetch_jars
from tools.servers.process import ROOT, Process, StackError, check_free, free_ports, java

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POM = ROOT / "tools" / "kafka" / "pom.xml"
LOG4J = ROOT / "tools" / "kafka" / "log4j2.properties"
BUILD = ROOT / "build" / "kafka"

# A broker that lives for minutes is ready in half the time without the optimising compiler.
JVM = ["-Xmx1g", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]

SERVER = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=CONTROLLER://127.0.0.1:{controller},PLAINTEXT://127.0.0.1:{plain},SASL_PLAINTEXT://127.0.0.1:{sasl}
advertised.listeners=PLAINTEXT://127.0.0.1:{advertised},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{username}="{password}";
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.num.partitions=8
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.retention.check.interval.ms=10000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
"""

LISTENER = """\
listener.name.{name}.ssl.keystore.type=PEM
listener.name.{name}.ssl.keystore.location={keystore}
listener.name.{name}.ssl.truststore.type=PEM
listener.name.{name}.ssl.truststore.location={truststore}
listener.name.{name}.ssl.client.auth={clients}
listener.name.{name}.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{username}="{password}";
"""


class Secured(NamedTuple):
    """A listener with TLS. `keystore`: its key and certificate; `truststore`: who may come (PEM).

    `sasl`: it wants username and password (PLAIN), else a certificate of the client.
    """

    keystore: Path
    truststore: Path
    sasl: bool = False


def fetch_libraries(build: Path = BUILD) -> Path:
    """Return the folder of Kafka's jars; Maven fetches them when they or the pom are new."""
    return fetch_jars(POM, build)


def make_command(jvm: Sequence[str]) -> list[str]:
    """Return how a program of Kafka is started; its class and its arguments follow."""
    return [java(), *jvm, f"-Dlog4j2.configurationFile={LOG4J}", "-cp", f"{fetch_libraries()}/*"]


def format_storage(command: Sequence[str], config: Path, cluster_id: str) -> None:
    """Give the new data folder of a configuration the name of its cluster."""
    tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(config)]
    subprocess.run([*command, *tool], check=True, capture_output=True, timeout=60)


def create_topic(bootstrap_servers: str, name: str, partitions: int = 1, **config: object) -> None:
    """Create a topic and wait until it is there; `max_message_bytes=9` is max.message.bytes=9."""
    configs = {key.replace("_", "."): str(value) for key, value in config.items()}
    topic = NewTopic(name, num_partitions=partitions, replication_factor=1, topic_configs=configs)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        admin.create_topics([topic], timeout_ms=10_000)
        admin.wait_for_topics([name], timeout_ms=10_000)
    finally:
        admin.close()


class Cluster:
    """A Kafka that is there already, at `bootstrap_servers`; nothing is started or ended."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = self.plain_servers = bootstrap_servers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def topics(self) -> list[str]:
        """Return the names of the topics that are there."""
        admin = KafkaAdminClient(bootstrap_servers=self.plain_servers)
        try:
            return [str(topic) for topic in admin.list_topics()]
        finally:
            admin.close()

    def create_topic(self, name: str, partitions: int = 1, **config: object) -> None:
        """Create a topic and wait until it is there; see `create_topic` of this module."""
        create_topic(self.plain_servers, name, partitions, **config)


def kafka() -> Cluster:
    """Return the cluster of KAFKA_BOOTSTRAP_SERVERS, or one of our own, not started yet."""
    there = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    return Cluster(there) if there else Kafka()


class Kafka(Cluster):
    """A broker on free ports of the loopback address; its data lives in `folder`.

    Without a folder the data is private to this object and gone afterwards. With `sasl`,
    `bootstrap_servers` is the listener that wants `username` and `password` (SASL_PLAINTEXT,
    PLAIN); the open one is `plain_servers` in either case. `ports` are those of controller, open
    and guarded listener, if they shall not be just free ones. `advertised` is the port that the
    open listener names itself by, if a proxy stands before it. `secured`: listeners with TLS
    besides, by their names in lower case; `secured_servers` says where each one is.
    """

    username = "fmnist"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        sasl: bool = False,
        ports: tuple[int, int, int] | None = None,
        advertised: int | None = None,
        secured: Mapping[str, Secured] | None = None,
    ) -> None:
        self.private = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="kafka-"))
        self.password = secrets.token_hex(16)
        controller, plain, login = ports or free_ports(3)
        super().__init__(f"127.0.0.1:{plain}")
        self.ports: tuple[int, ...] = (controller, plain, login)
        self.bootstrap_servers = f"127.0.0.1:{login}" if sasl else self.plain_servers
        self.properties = SERVER.format(
            controller=controller,
            plain=plain,
            advertised=advertised or plain,
            sasl=login,
            username=self.username,
            password=self.password,
            data=self.folder / "data",
        )
        self._add_listeners(secured or {})

    def _add_listeners(self, secured: Mapping[str, Secured]) -> None:
        ports = free_ports(len(secured))
        self.ports = *self.ports, *ports
        self.secured_servers = {
            name: f"127.0.0.1:{port}" for name, port in zip(secured, ports, strict=True)
        }
        where = "".join(f",{name.upper()}://{at}" for name, at in self.secured_servers.items())
        kinds = "".join(
            f",{name.upper()}:{'SASL_SSL' if one.sasl else 'SSL'}" for name, one in secured.items()
        )
        lines = [
            line
            + (where if line.startswith(("listeners=", "advertised.listeners=")) else "")
            + (kinds if line.startswith("listener.security.protocol.map=") else "")
            for line in self.properties.splitlines()
        ]
        self.properties = "\n".join(lines) + "\n"
        for name, one in secured.items():
            self.properties += LISTENER.format(
                name=name,
                keystore=one.keystore,
                truststore=one.truststore,
                clients="none" if one.sasl else "required",
                username=self.username,
                password=self.password,
            )

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            if self.private:
                undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for port in self.ports:
                check_free(port)
            self._prepare()
            # Data that nobody needs any more is worth no orderly end.
            undo.callback(self.kill if self.private else self.stop)
            self.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _prepare(self) -> None:
        """Write the configuration; in a new folder, format the log directory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.properties"
        config.touch(mode=0o600)  # it holds the password
        config.write_text(self.properties, encoding="utf-8")
        command = make_command(JVM)
        if not (self.folder / "data" / "meta.properties").exists():
            format_storage(command, config, secrets.token_urlsafe(16))
        self.process = Process([*command, "kafka.Kafka", str(config)], self.folder / "kafka.log")

    def start(self, timeout: float = 60.0) -> Self:
        """Start it, on the ports and the data of before, and wait until it answers."""
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self._answers():
            if time.monotonic() > deadline or not self.process.alive():
                self.kill()
                raise StackError(f"Kafka did not start; its log ends with:\n{self.process.tail()}")
            time.sleep(0.1)
        return self

    def _answers(self) -> bool:
        """Ask for the cluster's metadata; first see whether anybody listens, which costs less."""
        servers = self.plain_servers
        host, port = servers.split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            admin = KafkaAdminClient(bootstrap_servers=servers, bootstrap_timeout_ms=5000)
        except (OSError, KafkaError):
            return False
        try:
            return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            admin.close()

    def stop(self) -> None:
        """End it in good order."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
