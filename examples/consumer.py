"""Print predictions as they come. Usage: python examples/consumer.py TOPIC [COUNT].

Plain kafka-python. `read_committed` is what makes each result come exactly once.
KAFKA_BOOTSTRAP_SERVERS names the brokers (default: localhost:9092). Ctrl-C ends it.
"""

import json
import os
import sys
from contextlib import suppress
from itertools import islice

from kafka import KafkaConsumer

topic, *count = sys.argv[1:] or sys.exit(__doc__)
servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
consumer = KafkaConsumer(
    topic,
    bootstrap_servers=servers,
    isolation_level="read_committed",
    auto_offset_reset="earliest",
)
with suppress(KeyboardInterrupt):
    for record in islice(consumer, int(count[0]) if count else None):
        result = json.loads(record.value)
        key = (record.key or b"").decode("utf-8", "replace")
        print(f"{result['id']}  {key}  {result['label']}  {result['score']:.3f}", flush=True)
consumer.close()
