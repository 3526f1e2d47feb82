"""The plain subscriber: Pub/Sub's library as its documentation shows it, one image a request.

All settings are the library's own: ten threads, 1,000 messages at once. Each thread has one
connection to the service. A message is acknowledged when its prediction is published, from the
future's callback, so no thread waits for that.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from functools import partial
from typing import Any

import requests
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

TIMEOUT_S = 20.0


class PlainSubscriber:
    """The callback, and what it needs."""

    def __init__(self, url: str, subscription: str, topic: str) -> None:
        self._url = url
        self._subscription = subscription
        self._topic = topic
        self._publisher = PublisherClient()
        self._local = threading.local()

    def __call__(self, message: Any) -> None:  # noqa: ANN401 - the library's
        """Ask for one prediction and publish it."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        answer = self._local.session.post(
            self._url, message.data, headers={"Content-Type": "image/png"}, timeout=TIMEOUT_S
        )
        answer.raise_for_status()
        result = {"id": f"{self._subscription}/{message.message_id}", **answer.json()}
        future = self._publisher.publish(
            self._topic, json.dumps(result).encode(), **message.attributes
        )
        future.add_done_callback(partial(_acknowledge, message))


def _acknowledge(message: Any, future: Any) -> None:  # noqa: ANN401 - the library's
    if future.exception():
        message.nack()
    else:
        message.ack()


def main() -> None:
    """Relay until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plain_pubsub", description=__doc__)
    for flag in ("--project", "--subscription", "--output-topic", "--dead-letter-topic", "--url"):
        parser.add_argument(flag, required=True)
    asked = parser.parse_args()
    subscriber = SubscriberClient()
    subscription = subscriber.subscription_path(asked.project, asked.subscription)
    topic = PublisherClient.topic_path(asked.project, asked.output_topic)
    stream = subscriber.subscribe(
        subscription, PlainSubscriber(asked.url, asked.subscription, topic)
    )
    signal.signal(signal.SIGTERM, lambda *_: stream.cancel())
    stream.result()


if __name__ == "__main__":
    main()
