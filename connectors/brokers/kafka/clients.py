"""Clients of kafka-python: made, asked, and closed in bounded time; and what their errors mean."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, codec
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.protocol.producer import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)

from ...errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .. import Untyped
    from .settings import KafkaSettings


FENCED = (
    kafka_errors.ProducerFencedError,
    kafka_errors.InvalidProducerEpochError,  # the same, as partitions say it
    kafka_errors.FencedInstanceIdError,
)
REFUSED = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
)
UNUSABLE = (
    kafka_errors.KafkaConfigurationError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidTransactionTimeoutError,
    kafka_errors.IncompatibleBrokerVersion,
)
CODEC_LIBRARIES = {"lz4": "lz4", "snappy": "python-snappy", "zstd": "zstandard"}
"""What Python needs for each compression that it does not bring along, as pip calls it."""

CLIENT_TIMEOUTS = {
    "bootstrap_timeout_ms": 10_000,
    "request_timeout_ms": 15_000,
    "reconnect_backoff_max_ms": 1_000,
    "max_block_ms": 10_000,
}
"""What bounds each wait of the library, but for those of a transaction: see `BoundedProducer`."""

BATCH_BYTES = 64 << 10
"""Bytes of one batch of messages; of the library's 16 KiB a commit makes many requests.

For a topic that takes less at once (`max.message.bytes`) the library cuts each batch in halves.
"""

CALL_TIMEOUT = 10.0
"""Seconds for one question to the broker."""

DELETED_TOPIC_INTERVAL = 10.0
"""Seconds between two questions whether the topics are still there, while something is wrong."""

CLOSE_TIMEOUT = 3.0
"""Seconds for closing one client."""


class CountingNetClient(KafkaNetClient):  # type: ignore[misc]  # kafka-python ships no types
    """Counts the transactional requests that a broken connection cut off.

    kafka-python sends those again and says nothing, but the first copy may still be on its way:
    a stray EndTxn ends a later transaction, a stray TxnOffsetCommit moves its offsets back.
    What is sent again after an answer (CONCURRENT_TRANSACTIONS) is normal and not counted.
    """

    counted = (
        AddPartitionsToTxnRequest,
        AddOffsetsToTxnRequest,
        TxnOffsetCommitRequest,
        EndTxnRequest,
    )

    def __init__(self, **configs: Untyped) -> None:
        super().__init__(**configs)
        self.cut_off = 0

    def send(self, node_id: int, request: object, **options: Untyped) -> Untyped:
        """Send as ever; return the future of the answer."""
        future = super().send(node_id, request, **options)
        if isinstance(request, self.counted):
            future.add_errback(self._count)
        return future

    def _count(self, error: Exception) -> None:
        if isinstance(error, kafka_errors.KafkaConnectionError):
            self.cut_off += 1


def open_client(
    kind: type, settings: KafkaSettings, ours: Mapping[str, Any]
) -> tuple[Untyped, CountingNetClient]:
    """Make a client of kafka-python; what its constructor leaves open when it fails is closed."""
    net_clients: list[CountingNetClient] = []

    def connect(**configs: Untyped) -> CountingNetClient:
        net_clients.append(CountingNetClient(**configs))
        return net_clients[-1]

    try:
        return kind(kafka_client=connect, **client_arguments(kind, settings, ours)), net_clients[0]
    except BaseException:
        for net_client in net_clients:
            net_client.close()
        raise


def client_arguments(
    kind: Untyped, settings: KafkaSettings, ours: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of a client: ours, the operator's `kafka` table, the flags.

    The table holds arguments of the consumer and of the producer; each client takes its own.
    """
    known = {*KafkaConsumer.DEFAULT_CONFIG, *KafkaProducer.DEFAULT_CONFIG}
    for name in settings.kafka:
        if name not in known:
            raise Stop(f"the kafka table sets {name}, which kafka-python does not know", Exit.USAGE)
        if name in ours:
            raise Stop(f"the kafka table sets {name}, which this program must decide", Exit.USAGE)
    if settings.kafka.get("compression_type") in missing_codecs():
        advice = advise_library(settings.kafka["compression_type"])
        raise Stop(f"the kafka table cannot have its compression_type: {advice}", Exit.USAGE)
    preferred = {**CLIENT_TIMEOUTS, "batch_size": BATCH_BYTES}
    arguments = {**preferred, **_connection(settings), **settings.kafka, **ours}
    return {name: arguments[name] for name in arguments if name in kind.DEFAULT_CONFIG}


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    """Where the broker is and how to be let in; the password is read anew each time."""
    files = {
        name: str(path)
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if (path := getattr(settings, name))
    }
    return {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "client_id": settings.instance,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password(),
        "allow_auto_create_topics": False,
        **files,
    }


def close_now(producer: Untyped) -> None:
    """Close a producer and drop what it has not delivered, in bounded time.

    Its own `close` first waits for that, and gives up without ending its thread.
    """
    producer._sender.force_close()  # noqa: SLF001 - there is no public way; tested
    producer.close(timeout=CLOSE_TIMEOUT)


def forget_fetches(consumer: Untyped) -> None:
    """Make the next `committed` ask the coordinator.

    One that timed out leaves its request behind, and the next would take that one's late answer,
    which may be older than what another member has committed since.
    """
    consumer._coordinator._offset_fetch_futures.clear()  # noqa: SLF001 - there is no public way; tested


def refresh_leaders(consumer: Untyped) -> None:
    """Let a consumer learn who leads its partitions now, before it asks for their offsets.

    Told that another broker leads, the library asks the same one again, until its time is over, and
    so each time anew until its metadata are 5 minutes old. It takes new ones as soon as they come.
    """
    consumer._cluster.request_update()  # noqa: SLF001 - there is no public way; tested


def rejoin(consumer: Untyped) -> None:
    """Let a member that is not settled go on joining; it does no harm to one that does.

    The library joins again when partitions were added, but if that takes longer than one poll it
    forgets why, and stays outside for ever without a word.
    """
    consumer._coordinator.request_rejoin()  # noqa: SLF001 - there is no public way; tested


def position_of(consumer: Untyped, partition: TopicPartition) -> int:
    """Where reading goes on, -1 when that is not known; asks nobody, as `position` would."""
    state = consumer._subscription.assignment.get(partition)  # noqa: SLF001 - there is no public way; tested
    return state.position.offset if state and state.position else -1


def is_topic_known(consumer: Untyped, topic: str) -> bool:
    """Say whether the broker knew a topic when it was last asked about it.

    Asks nobody, as `partitions_for_topic` would, and without a deadline.
    """
    return bool(consumer._cluster.partitions_for_topic(topic))  # noqa: SLF001 - there is no public way; tested


def find_unreadable(consumer: Untyped, error: Exception) -> TopicPartition | None:
    """Whose next record the library cannot take apart, as when a header's name is not UTF-8.

    Or cannot unpack, for want of another library. Such a record is whole, or the checksum of its
    batch would have been wrong, which is a broken transmission and no record's fault: None. What
    was fetched is dropped, to be fetched again: the library would search what is left of it for
    ever.
    """
    records = consumer._fetcher._next_partition_records  # noqa: SLF001 - there is no public way; tested
    packed = isinstance(error, kafka_errors.UnsupportedCodecError)
    if not records or not (packed or isinstance(error.__context__, ValueError | IndexError)):
        return None
    records.drain()
    partition: TopicPartition = records.topic_partition
    return partition


def raise_kept_error(consumer: Untyped) -> None:
    """Raise what the library found behind the records that it handed out last.

    It keeps that for its next poll, but drops it when the partition is paused by then; and what is
    left of such a partition it would search for ever.
    """
    fetcher = consumer._fetcher  # noqa: SLF001 - there is no public way; tested
    kept, fetcher._next_in_line_exception_metadata = fetcher._next_in_line_exception_metadata, None  # noqa: SLF001
    if kept and position_of(consumer, kept.partition) == kept.fetched_offset:
        raise kept.exception


def missing_codecs() -> list[str]:
    """The compressions of Kafka whose library is not installed."""
    return [name for name in CODEC_LIBRARIES if not getattr(codec, f"has_{name}")()]


def advise_library(found: str) -> str:
    """Say what to install for the compressions that a text names."""
    packed = [name for name in CODEC_LIBRARIES if name in found]
    libraries = " ".join(CODEC_LIBRARIES[name] for name in packed)
    return f"{' and '.join(packed)} needs a library: pip install {libraries}" if packed else found


def raise_if_permanent(error: Exception, settings: KafkaSettings) -> None:
    """Raise Stop when time will not cure it."""
    # What failed after the cause, and because of it, may carry it along.
    causes = (error, *error.args)
    if any(isinstance(one, FENCED) for one in causes):
        raise Stop(
            f"fenced: either a younger daemon is called {settings.instance} too, or this one slept "
            f"longer than its transaction timeout ({settings.transaction_timeout:g} s); give each "
            "its own --instance, or just start again",
            Exit.FENCED,
        ) from error
    if any(isinstance(one, REFUSED) for one in causes):
        raise Stop(
            f"the broker at {settings.bootstrap_servers} refuses this client ({error}): correct "
            "its credentials or its rights",
            Exit.UNAVAILABLE,
        ) from error
    if isinstance(error, kafka_errors.UnsupportedCodecError):
        what = f"a topic has records that cannot be unpacked ({advise_library(str(error))})"
        raise Stop(f"{what}: do that, then start", Exit.UNAVAILABLE) from error
    if isinstance(error, UNUSABLE):
        raise Stop(f"Kafka cannot work with these settings ({error}): correct them", Exit.USAGE)


@contextmanager
def stop_if_unreachable(settings: KafkaSettings) -> Iterator[None]:
    """Turn what goes wrong at the start into Stop: nothing has been promised yet."""
    try:
        yield
    except KafkaError as error:
        raise_if_permanent(error, settings)
        servers = settings.bootstrap_servers
        faults = [
            fault for server in servers.split(",") if (fault := _find_fault(server, settings))
        ]
        if faults:
            what = f"TLS with {faults[0]}: correct the certificates or the ssl_ flags"
        elif any(map(_is_listening, servers.split(","))):
            what = f"who listens at {servers} does not let us in: correct the security flags"
        else:
            what = f"no Kafka broker listens at {servers}: start it, or correct --bootstrap-servers"
        raise Stop(f"{what} ({error})", Exit.UNAVAILABLE) from error


def _is_listening(server: str) -> bool:
    """Say whether a connection can be made.

    kafka-python gives no other hint: it drops what a broker says when it hangs up right after.
    """
    host, _, port = server.strip().rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def _find_fault(server: str, settings: KafkaSettings) -> str:
    """Say why TLS with a server does not come about; nothing when it does, or is not asked for.

    kafka-python keeps that to itself too.
    """
    options = {**_connection(settings), **settings.kafka}
    if not options["security_protocol"].endswith("SSL"):
        return ""
    host, _, port = server.strip().rpartition(":")
    name = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_cafile"))
        context.check_hostname = options.get("ssl_check_hostname", True)
        if certfile := options.get("ssl_certfile"):
            password = options.get("ssl_password")
            context.load_cert_chain(certfile, options.get("ssl_keyfile"), password)
        with (
            socket.create_connection((name, int(port)), timeout=3) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            secured.settimeout(1)
            secured.recv(1)  # a broker says here that it does not like our certificate
    except ssl.SSLError as error:
        return f"{server.strip()} fails ({error})"
    except (OSError, ValueError):  # nobody is there, or nobody has refused
        return ""
    return ""


def read_max_message_bytes(settings: KafkaSettings, topic: str) -> int | None:
    """`max.message.bytes` of a topic; None when that may not be read."""
    name = "max.message.bytes"
    unreadable = suppress(kafka_errors.AuthorizationError)
    with stop_if_unreachable(settings), connect_admin(settings) as admin, unreadable:
        found = describe_configs(admin, [topic], [name])[topic]
        return int(found[name]) if name in found else None
    return None


@contextmanager
def connect_admin(settings: KafkaSettings) -> Iterator[Untyped]:
    """A client that asks about topics and groups; closed at the end of the block."""
    admin, _ = open_client(KafkaAdminClient, settings, {})
    try:
        yield admin
    finally:
        admin.close()


def describe_configs(
    admin: Untyped, topics: Sequence[str], names: Sequence[str]
) -> dict[str, dict[str, str]]:
    """The settings of each topic by these names, without those that may not be read."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, list(names)) for topic in topics]
    found = admin.describe_configs(asked, config_filter="all")["topic"]
    return {
        topic: {name: one["value"] for name, one in found.get(topic, {}).items() if name in names}
        for topic in topics
    }


def partition_counts(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has; Stop when one is missing, since none is ever created."""
    with stop_if_unreachable(settings):
        found = _describe_topics(settings, topics)
    for topic in topics:
        if code := found[topic]["error_code"]:
            why = kafka_errors.for_code(code).__name__
            raise Stop(
                f"topic {topic} cannot be used ({why}): create it, or correct its name",
                Exit.UNAVAILABLE,
            )
    return {topic: len(found[topic]["partitions"]) for topic in topics}


def recount_partitions(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """As `partition_counts`, while a daemon runs: raises KafkaError when they are not known now."""
    found = _describe_topics(settings, topics)
    for topic in topics:
        if code := found[topic]["error_code"]:
            raise kafka_errors.for_code(code)(topic)
    return {topic: len(found[topic]["partitions"]) for topic in topics}


class DeletedTopicDetector:
    """Finds out whether a topic of a running daemon is gone, when something is wrong anyway.

    A broker that has just started may not know a topic for a moment, so one answer is no evidence:
    two in a row are, DELETED_TOPIC_INTERVAL apart.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topics: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._topics = topics
        self._clock = clock
        self._asked_at = clock()  # a daemon asks for all when it starts
        self._gone: set[str] = set()

    def check(self) -> None:
        """Ask, unless that was just done; raises Stop when a topic was not there last time either.

        What cannot be asked says nothing.
        """
        if self._clock() - self._asked_at < DELETED_TOPIC_INTERVAL:
            return
        gone = self._find_gone()
        self._asked_at = self._clock()
        if lasting := gone & self._gone:
            raise Stop(
                f"{' and '.join(sorted(lasting))} is not there any more "
                "(UnknownTopicOrPartitionError): create it, with as many partitions as the others, "
                "then start",
                Exit.UNAVAILABLE,
            )
        self._gone = gone

    def _find_gone(self) -> set[str]:
        try:
            found = _describe_topics(self._settings, self._topics)
        except KafkaError as error:
            raise_if_permanent(error, self._settings)
            return set()
        unknown = kafka_errors.UnknownTopicOrPartitionError.errno
        return {topic for topic in self._topics if found[topic]["error_code"] == unknown}


def _describe_topics(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, Untyped]:
    with connect_admin(settings) as admin:
        return {one["name"]: one for one in admin.describe_topics(list(set(topics)))}
