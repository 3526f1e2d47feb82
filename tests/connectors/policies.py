"""A relay's policy as an operator's defaults make it, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from connectors.brokers.kafka.settings import RunKafka
from connectors.daemon import make_policy

if TYPE_CHECKING:
    from connectors.relay import Policy

DEFAULTS = make_policy(RunKafka(input_topic="images", output_topic="predictions"))


def policy(**changes: Any) -> Policy:  # noqa: ANN401 - any field
    """The defaults, but for these."""
    return replace(DEFAULTS, **changes)
