"""A relay as one would write it first: one image a request, many threads, at least once.

What a stream processor without packing does to the same service. Offsets are committed once a batch
has been answered and published.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import requests
from kafka import KafkaConsumer, KafkaProducer

THREADS = 64
BATCH = 1024
TIMEOUT_S = 20.0
POLL_MS = 1000


class PlainRelay:
    """Asks for one prediction at a time from each thread."""

    def __init__(self, url: str, producer: KafkaProducer, topic: str) -> None:
        self._url = url
        self._producer = producer
        self._topic = topic
        self._local = threading.local()

    def __call__(self, record: Any) -> None:  # noqa: ANN401 - the library's
        """Answer one record."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        answer = self._local.session.post(
            self._url, record.value, headers={"Content-Type": "image/png"}, timeout=TIMEOUT_S
        )
        answer.raise_for_status()
        name = f"{record.topic}/{record.partition}/{record.offset}"
        result = json.dumps({"id": name, **answer.json()}).encode()
        self._producer.send(self._topic, result, record.key, partition=record.partition)


def main() -> None:
    """Relay until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plain_kafka", description=__doc__)
    for flag in ("--bootstrap-servers", "--input-topic", "--output-topic", "--group", "--url"):
        parser.add_argument(flag, required=True)
    asked = parser.parse_args()
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    consumer = KafkaConsumer(
        asked.input_topic,
        bootstrap_servers=asked.bootstrap_servers,
        group_id=asked.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = KafkaProducer(bootstrap_servers=asked.bootstrap_servers, acks="all", linger_ms=5)
    relay = PlainRelay(asked.url, producer, asked.output_topic)
    with ThreadPoolExecutor(THREADS) as pool:
        while running:
            relay_batch(consumer, producer, partial(pool.map, relay))


def relay_batch(consumer: KafkaConsumer, producer: KafkaProducer, ask: Any) -> None:  # noqa: ANN401 - a partial
    """Answer what is there now, then commit."""
    found = consumer.poll(POLL_MS, max_records=BATCH)
    list(ask(record for records in found.values() for record in records))
    producer.flush()
    if found:
        consumer.commit()


if __name__ == "__main__":
    main()
