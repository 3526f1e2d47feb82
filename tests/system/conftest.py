"""The real services, one of each for all system tests."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tools.servers import kafka as stack_kafka
from tools.servers import pubsub as stack_pubsub
from tools.servers.process import StackError
from tools.servers.torchserve import ARCHIVE, TorchServe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.servers.kafka import Cluster
    from tools.servers.pubsub import Emulation


@pytest.fixture(scope="session")
def server() -> Iterator[TorchServe]:
    """A TorchServe with our archive, on free ports."""
    if not ARCHIVE.exists():
        missing("model_store/fmnist.mar is not there: run `make archive`")
    with TorchServe() as running:
        yield running


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """A Kafka of one node, or the one of KAFKA_BOOTSTRAP_SERVERS."""
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(stack_kafka.kafka())
        except StackError as error:
            missing(str(error))
        yield broker


@pytest.fixture(scope="session")
def emulation() -> Iterator[Emulation]:
    """Google's Pub/Sub emulator, or the one of PUBSUB_EMULATOR_HOST."""
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(stack_pubsub.pubsub())
        except StackError as error:
            missing(str(error))
        yield broker


@pytest.fixture(scope="session")
def emulator() -> None:
    """What a run that hurts or measures the emulator starts one of its own from."""
    try:
        stack_pubsub.program()
    except StackError as error:
        missing(str(error))
