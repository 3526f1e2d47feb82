"""Send image files to the input topic. Usage: python examples/producer.py TOPIC FILE ...

Plain kafka-python: whatever puts the bytes of one image file into a record's value will do.
KAFKA_BOOTSTRAP_SERVERS names the brokers (default: localhost:9092).
"""

import mimetypes
import os
import sys
from pathlib import Path

from kafka import KafkaProducer

topic, *files = sys.argv[1:] or sys.exit(__doc__)
servers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
producer = KafkaProducer(bootstrap_servers=servers, acks="all")
for path in map(Path, files):
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    headers = [("content-type", kind.encode())]  # optional: the handler looks at the bytes
    producer.send(topic, path.read_bytes(), path.name.encode(), headers).get(timeout=30)
    print(f"sent {path}", flush=True)
producer.close()
