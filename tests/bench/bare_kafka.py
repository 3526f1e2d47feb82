"""The least that exactly once can cost with kafka-python: poll, send, commit, and no service.

A loop as the library's documentation shows it: what was polled is answered with one constant, and
results and offsets go into one transaction. Nothing is checked, nothing is held back.
"""

from __future__ import annotations

import argparse
import signal

from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata

RESULT = b'{"id":"images/0/0","class":9,"label":"Ankle boot","score":0.99}'
BATCH = 4096
TIMEOUT_MS = 1000


def main() -> None:
    """Copy until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bare_kafka", description=__doc__)
    for flag in ("--bootstrap-servers", "--input-topic", "--output-topic", "--group"):
        parser.add_argument(flag, required=True)
    asked = parser.parse_args()
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_: running.clear())
    servers = asked.bootstrap_servers
    consumer = KafkaConsumer(
        asked.input_topic,
        bootstrap_servers=servers,
        group_id=asked.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    producer = KafkaProducer(
        bootstrap_servers=servers, transactional_id=asked.group, acks="all", linger_ms=5
    )
    producer.init_transactions()
    while running:
        copy_batch(consumer, producer, asked.output_topic)
    consumer.close()


def copy_batch(consumer: KafkaConsumer, producer: KafkaProducer, topic: str) -> None:
    """Answer what is there now, in one transaction."""
    found = consumer.poll(TIMEOUT_MS, max_records=BATCH)
    if not found:
        return
    producer.begin_transaction()
    for partition, records in found.items():
        for record in records:
            producer.send(topic, RESULT, record.key, partition=partition.partition)
    offsets = {
        one: OffsetAndMetadata(records[-1].offset + 1, "", -1) for one, records in found.items()
    }
    producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
    producer.commit_transaction()


if __name__ == "__main__":
    main()
