"""Settings of the Kafka connector, for each verb."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, FilePath, model_validator

from ...tls import is_loopback, require_tls_files
from ...verbs import (
    Check,
    Daemon,
    DeadLetters,
    Doctor,
    ListDead,
    Listen,
    LivePage,
    PrintConfig,
    Replay,
    Seconds,
    Send,
    ShowDead,
    require_different,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from ...settings import Settings


_HOST = r"(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[^\s\[\]:/@,]+)"
_SERVER = re.compile(rf"([A-Z_]+://)?{_HOST}(:(?P<port>[0-9]{{1,5}}))?")
MAX_PORT = 65_535


def require_servers(servers: str) -> str:
    """Refuse what kafka-python cannot take apart, or would never reach."""
    for server in servers.split(","):
        if not _is_server(server.strip()):
            text = "it" if "@" in server else f"{server.strip()!r}"
            raise ValueError(
                f"{text} is no host:port with a port from 1 to {MAX_PORT}; "
                "write localhost:9092 or [::1]:9092, several with commas"
            )
    return servers


def _is_server(server: str) -> bool:
    found = _SERVER.fullmatch(server)
    if found:
        return 1 <= int(found["port"] or 1) <= MAX_PORT
    try:
        IPv6Address(server)
    except ValueError:
        return False
    return True


def _host_of(server: str) -> str:
    found = _SERVER.fullmatch(server.strip())
    return found["host"] if found else server.strip()


PROCESS_NAMESPACE = Path("/proc/self/ns/pid")
MACHINES_OWN_NAMESPACE = 0xEFFFFFFC
"""The number of the process namespace that Linux begins with."""


def name_process() -> str:
    """Return a name that no other process of this machine has: host, process id.

    In a container the namespace of its process ids comes in between: two containers that share
    the machine's network have its host name, and each counts its processes from 1.
    """
    try:
        namespace = PROCESS_NAMESPACE.stat().st_ino
    except OSError:  # no Linux
        namespace = MACHINES_OWN_NAMESPACE
    middle = () if namespace == MACHINES_OWN_NAMESPACE else (str(namespace),)
    return "-".join((socket.gethostname(), *middle, str(os.getpid())))


class KafkaSettings(Daemon):
    """Kafka."""

    messaging_system: ClassVar[str] = "kafka"
    attribute_prefix: ClassVar[str] = "ce_"

    bootstrap_servers: Annotated[str, AfterValidator(require_servers)] = Field(
        default="127.0.0.1:9092", description="host:port, comma separated"
    )
    input_topic: str = Field(default="", description="images in")
    output_topic: str = Field(default="", description="predictions out")
    dead_letter_topic: str = Field(
        default_factory=lambda known: f"{known['input_topic']}.dead",
        description="records without a prediction (default: <input topic>.dead)",
    )
    group: str = Field(default="fmnist", description="consumer group", min_length=1)
    instance: str = Field(
        default_factory=name_process,
        description="name of this daemon, unique in its group (default: <hostname>-<process id>); "
        "a stable name lets a restart fence its predecessor at once; in a container the default "
        "also has the number of its process namespace",
        min_length=1,
    )
    delivery: Literal["exactly-once", "at-least-once"] = Field(
        default="exactly-once", description="one transaction for results and offsets, or none"
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest",
        validation_alias="from",
        description="where a group without offsets begins",
    )
    session_timeout: Seconds = Field(
        default=10.0, description="seconds of silence before the group moves on without this daemon"
    )
    heartbeat_interval: Seconds = Field(default=2.0, description="seconds between two heartbeats")
    transaction_timeout: Seconds = Field(
        default=8.0, description="seconds before the broker aborts a transaction nobody ends"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to speak with the broker"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="how to log in"
    )
    sasl_username: str | None = Field(default=None, description="who logs in")
    sasl_password_file: FilePath | None = Field(
        default=None, description="file that holds the password"
    )
    ssl_cafile: FilePath | None = Field(default=None, description="authorities to trust (PEM)")
    ssl_certfile: FilePath | None = Field(
        default=None, description="certificate of this client (PEM)"
    )
    ssl_keyfile: FilePath | None = Field(default=None, description="its private key (PEM)")
    kafka: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,  # may hold secrets
        description="arguments for kafka-python's clients, as they are: a table of the file",
    )

    @model_validator(mode="after")
    def _login_is_complete(self) -> Self:
        login = (self.sasl_mechanism, self.sasl_username, self.sasl_password_file)
        if any(login) and not self.security_protocol.startswith("SASL"):
            msg = "security_protocol must be SASL_SSL or SASL_PLAINTEXT when a sasl_ flag is given"
            raise ValueError(msg)
        if any(login) and not all(login):
            msg = "sasl_mechanism, sasl_username and sasl_password_file go together"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _certificates_of_kafka_can_be_used(self) -> Self:
        files = self.ssl_cafile, self.ssl_certfile, self.ssl_keyfile
        require_tls_files("ssl_", *files, password=self.kafka.get("ssl_password"))
        return self

    def describe_source(self) -> dict[str, str]:
        """See `Daemon.describe_source`."""
        return {"group": self.group, "topic": self.input_topic}

    def describe_results(self) -> dict[str, str]:
        """See `Daemon.describe_results`."""
        return self.describe_topic(self.output_topic)

    def list_exposures(self) -> Iterator[str]:
        """See `Service.list_exposures`; the `kafka` table goes before the flags."""
        yield from super().list_exposures()
        protocol = self.kafka.get("security_protocol", self.security_protocol)
        mechanism = self.kafka.get("sasl_mechanism", self.sasl_mechanism)
        hosts = [_host_of(one) for one in self.bootstrap_servers.split(",")]
        away = ", ".join(host for host in hosts if not is_loopback(host))
        if protocol == "SASL_PLAINTEXT" and mechanism == "PLAIN":
            yield "the password goes to Kafka in the clear: give --security-protocol SASL_SSL"
        if not protocol.endswith("SSL") and away:
            secure = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
            what = f"the records go to {away} in the clear"
            yield f"{what}: give --security-protocol {secure}"
        if protocol.endswith("SSL") and self.kafka.get("ssl_check_hostname") is False:
            yield (
                "any host with a certificate of the same authority could pass for Kafka: remove "
                "ssl_check_hostname from the kafka table"
            )

    def sasl_password(self) -> str | None:
        """The password, without the newline that editors put at the end of a file."""
        file = self.sasl_password_file
        return file.read_text(encoding="utf-8").rstrip("\r\n") if file else None


GROUP_ONLY = frozenset(
    ("group", "delivery", "start", "session_timeout", "heartbeat_interval", "transaction_timeout")
)
"""Settings of a member of a consumer group, and of its transactions."""


class RunKafka(KafkaSettings):
    """Relay images from a Kafka topic to the inference API, and its predictions to another.

    Example: python -m connectors kafka --input-topic images --output-topic predictions
    """

    input_topic: str = Field(description="images in", min_length=1)
    output_topic: str = Field(description="predictions out", min_length=1)

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        require_different(self, "input_topic", "output_topic", "dead_letter_topic")
        return self


class SendKafka(Send, KafkaSettings):
    """Send images to a Kafka topic.

    Example: python -m connectors send kafka --input-topic images --test-set --limit 1000
    """

    unused: ClassVar[frozenset[str]] = Send.unused | GROUP_ONLY

    input_topic: str = Field(description="images in", min_length=1)

    def describe_sending(self) -> dict[str, str]:
        """See `Send.describe_sending`."""
        return self.describe_topic(self.input_topic)


class ListenKafka(Listen, KafkaSettings):
    """Watch the predictions in a Kafka topic.

    Example: python -m connectors listen kafka --output-topic predictions
    """

    unused: ClassVar[frozenset[str]] = Listen.unused | GROUP_ONLY

    output_topic: str = Field(description="predictions out", min_length=1)


class WatchKafka(LivePage, RunKafka):
    """Serve a live page of what daemons do: lag, rates, the newest images, dead letters.

    It joins no group, commits nothing and produces nothing. --group: whose lag is shown.

    Example: python -m connectors watch kafka --input-topic images --output-topic predictions
    """

    unused: ClassVar[frozenset[str]] = LivePage.unused | GROUP_ONLY - {"group"}

    def describe_page(self) -> dict[str, str]:
        """See `LivePage.describe_page`."""
        return {
            "broker": f"Kafka at {self.bootstrap_servers}",
            "group": self.group,
            "images": self.input_topic,
            "predictions": self.output_topic,
            "dead letters": self.dead_letter_topic,
        }


class DeadKafka(DeadLetters, KafkaSettings):
    """Dead letters of a Kafka topic."""

    unused: ClassVar[frozenset[str]] = DeadLetters.unused | GROUP_ONLY

    input_topic: str = Field(description="where the dead letters came from", min_length=1)

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        require_different(self, "input_topic", "dead_letter_topic")
        return self


class ListDeadKafka(ListDead, DeadKafka):
    """List dead letters: a line for each, and how many there are of each reason.

    Example: python -m connectors dlq list kafka --input-topic images --where reason=failed
    """


class ShowDeadKafka(ShowDead, DeadKafka):
    """Show whole dead letters, or write the value of one to a file.

    Example: python -m connectors dlq show kafka --input-topic images --where id=images/3/1042
    """


class ReplayKafka(Replay, DeadKafka):
    """Send dead letters back to the input topic, each once under one name.

    The same name goes on where it stopped, with the same conditions; a new name begins with the
    oldest dead letter. It ends with the dead letters that were there when it began.

    Example: python -m connectors dlq replay kafka --input-topic images --name after-fix
    """

    unused: ClassVar[frozenset[str]] = DeadLetters.unused - {"stuck_after"} | {"delivery", "start"}


class CheckKafka(Check, RunKafka):
    """Check whether a daemon with these settings could work.

    Example: python -m connectors check kafka --input-topic images --output-topic predictions
    """


class DoctorKafka(Doctor, RunKafka):
    """Check everything, look at the surroundings too, and say what could be better.

    Example: python -m connectors doctor kafka --input-topic images --output-topic predictions
    """


class PrintConfigKafka(PrintConfig, RunKafka):
    """Print each setting, its value and where that came from.

    Example: python -m connectors print-config kafka --config connector.toml --json
    """


VERBS: Mapping[str, type[Settings]] = {
    "run": RunKafka,
    "send": SendKafka,
    "listen": ListenKafka,
    "watch": WatchKafka,
    "dlq list": ListDeadKafka,
    "dlq show": ShowDeadKafka,
    "dlq replay": ReplayKafka,
    "check": CheckKafka,
    "doctor": DoctorKafka,
    "print-config": PrintConfigKafka,
}
"""What can be set for each verb."""
