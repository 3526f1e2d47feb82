"""The way into a topic of Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer

from tests.chaos.load import DELIVERY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.load import Input


class TopicProducer:
    """A `Producer`. What the library repeats after a bounce is in the topic once, in order.

    `linger_ms`: milliseconds that a record waits for others of its partition.
    """

    def __init__(self, servers: str, topic: str, linger_ms: int = 0) -> None:
        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            enable_idempotence=True,
            linger_ms=linger_ms,
            delivery_timeout_ms=int(DELIVERY_TIMEOUT_S * 1000),
            max_block_ms=int(DELIVERY_TIMEOUT_S * 1000),
            request_timeout_ms=5_000,
            reconnect_backoff_max_ms=1_000,
            allow_auto_create_topics=False,
        )
        self._topic = topic

    def send(self, record: Input, on_error: Callable[[Exception], Any]) -> None:
        """See `Producer.send`."""
        future: Any = self._producer.send(self._topic, **record._asdict())
        future.add_errback(on_error)

    def flush(self) -> None:
        """See `Producer.flush`."""
        self._producer.flush(timeout=DELIVERY_TIMEOUT_S)

    def close(self) -> None:
        """See `Producer.close`."""
        self._producer.close(timeout=5)
