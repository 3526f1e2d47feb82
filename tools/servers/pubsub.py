"""Google Pub/Sub for tests, the demo and `make up`: Google's emulator, nothing left behind.

The emulator keeps everything in memory: what was in its topics is gone when it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import Subscription, Topic

from tools.servers import emulator_repair
from tools.servers.process import Process, StackError, check_free, free_ports, java_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "PUBSUB_EMULATOR_HOST"
"""The variable that Google's client libraries follow."""

PROGRAM = "cloud-pubsub-emulator"
PACKAGED = Path("/usr/lib/google-cloud-sdk")  # where Google's packages for Linux put it
WITHIN_SDK = Path("platform", "pubsub-emulator", "bin", PROGRAM)
CALL_TIMEOUT_S = 10.0


def program() -> Path:
    """Return the path of the emulator; raises StackError when there is none."""
    named = os.environ.get("PUBSUB_EMULATOR")
    if named and not os.access(named, os.X_OK):
        raise StackError(f"PUBSUB_EMULATOR={named} is no program: correct it, or unset it")
    found = named or shutil.which(PROGRAM)
    if found:
        return Path(found)
    for sdk in _find_sdks():
        if (sdk / WITHIN_SDK).exists():
            return sdk / WITHIN_SDK
    raise StackError(
        "there is no Pub/Sub emulator on this machine: install Google's package "
        "google-cloud-cli-pubsub-emulator, or run `gcloud components install pubsub-emulator`, or "
        f"say where {PROGRAM} is by PUBSUB_EMULATOR="
    )


def _find_sdks() -> Iterator[Path]:
    """Where the Google Cloud SDK may be."""
    gcloud = shutil.which("gcloud")
    if gcloud:
        yield Path(gcloud).resolve().parent.parent
    yield PACKAGED
    yield Path.home() / "google-cloud-sdk"


class Emulation:
    """An emulator that is there already, at `host` (host:port); nothing is started or ended.

    `environment` leads the client libraries to it; it takes any project.
    """

    def __init__(self, host: str, project: str = "fmnist") -> None:
        self.host = host
        self.project = project
        self.environment = {HOST: host}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def topics(self) -> list[str]:
        """Return the ids of the topics that are there."""
        with self._channel() as channel:
            client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            name = f"projects/{self.project}"
            found = client.list_topics(project=name, retry=None, timeout=CALL_TIMEOUT_S)
            return [topic.name.rpartition("/")[2] for topic in found]

    def create_topic(self, name: str) -> None:
        """Create a topic."""
        with self._channel() as channel:
            client = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            client.create_topic(Topic(name=self.topic(name)), timeout=CALL_TIMEOUT_S)

    def create_subscription(
        self,
        name: str,
        topic: str,
        *,
        ordering: bool = True,
        ack_deadline: int = 10,
        **more: object,
    ) -> None:
        """Create a subscription; `more`: other fields of Pub/Sub's Subscription."""
        asked = Subscription(
            name=self.subscription(name),
            topic=self.topic(topic),
            enable_message_ordering=ordering,
            ack_deadline_seconds=ack_deadline,
            **more,
        )
        with self._channel() as channel:
            client = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
            client.create_subscription(asked, timeout=CALL_TIMEOUT_S)

    def topic(self, name: str) -> str:
        """Return the whole name of a topic."""
        return f"projects/{self.project}/topics/{name}"

    def subscription(self, name: str) -> str:
        """Return the whole name of a subscription."""
        return f"projects/{self.project}/subscriptions/{name}"

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.host)


def pubsub() -> Emulation:
    """Return the emulator of PUBSUB_EMULATOR_HOST, or one of our own, not started yet."""
    there = os.environ.get(HOST)
    return Emulation(there) if there else Emulator()


class Emulator(Emulation):
    """Google's emulator on a port of the loopback address, a free one if none is named.

    Its log lies in `folder`; without one it is private to this object and gone afterwards.
    """

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        self.private = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pubsub-"))
        self.port = port or free_ports(1)[0]
        super().__init__(f"127.0.0.1:{self.port}")

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            if self.private:
                undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            check_free(self.port)
            self.folder.mkdir(parents=True, exist_ok=True)
            self.process = Process(
                [
                    *emulator_repair.build_command(program(), self.folder),
                    "--host=127.0.0.1",
                    f"--port={self.port}",
                ],
                self.folder / "pubsub.log",
                env=java_environment() | {"JDK_JAVA_OPTIONS": "-Xmx1g -XX:-UsePerfData"},
            )
            undo.callback(self.kill)  # it has nothing to put in order
            self.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start(self, timeout: float = 60.0) -> Self:
        """Start it, empty, on the port of before, and wait until it answers."""
        self.process.start()
        deadline = time.monotonic() + timeout
        while not self._answers():
            if time.monotonic() > deadline or not self.process.alive():
                raise StackError(
                    f"the Pub/Sub emulator did not start; its log ends with:\n{self.process.tail()}"
                )
            time.sleep(0.1)
        return self

    def _answers(self) -> bool:
        try:
            self.topics()
        except GoogleAPICallError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL."""
        if hasattr(self.process, "child"):
            self.process.kill()
