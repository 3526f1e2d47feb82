"""Settings of the Pub/Sub connector, for each verb."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from ...settings import matching
from ...verbs import (
    Check,
    Daemon,
    DeadLetters,
    Doctor,
    ListDead,
    Listen,
    LivePage,
    PrintConfig,
    Replay,
    Send,
    ShowDead,
    require_different,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from ...settings import Settings


_NAME = re.compile(r"projects/([^/]+)/(topics|subscriptions)/([^/]+)")


def take_id(text: str, info: ValidationInfo) -> str:
    """Take the id out of a whole name, as consoles show it; refuse one of elsewhere."""
    whole = _NAME.fullmatch(text)
    if not whole:
        return text
    kind = "subscriptions" if "subscription" in str(info.field_name) else "topics"
    if whole[2] != kind:
        raise ValueError(f"it is one of the {whole[2]}; one of the {kind} is needed")
    project = info.data.get("project")
    if project and whole[1] != project:
        raise ValueError(f"it is of the project {whole[1]}, and --project is {project}")
    return whole[3]


Id = Annotated[
    str,
    AfterValidator(take_id),
    matching(
        r"[A-Za-z][A-Za-z0-9._~+%-]{2,254}",
        "an id begins with a letter and has 3 to 255 letters, digits and -._~+%; "
        "its whole name (projects/...) is taken as well",
    ),
]
"""Of a topic or a subscription of Pub/Sub (https://cloud.google.com/pubsub/docs/pubsub-basics)."""


class PubSubSettings(Daemon):
    """Pub/Sub."""

    messaging_system: ClassVar[str] = "gcp_pubsub"
    attribute_prefix: ClassVar[str] = "ce-"
    messaging_group: ClassVar[str] = "messaging.destination.subscription.name"

    project: Annotated[
        str, matching("[^/ ]+", "it is the project's id alone, such as my-project")
    ] = Field(
        default_factory=lambda: os.environ.get("GOOGLE_CLOUD_PROJECT", ""),
        description="Google Cloud project (required, unless GOOGLE_CLOUD_PROJECT names it)",
    )
    subscription: Id = Field(default="", description="images in")
    input_topic: Id = Field(default="", description="the topic of that subscription")
    output_topic: Id = Field(default="", description="predictions out")
    dead_letter_topic: Id = Field(
        default_factory=lambda known: known["subscription"] and f"{known['subscription']}-dead",
        description="records without a prediction (default: <subscription>-dead)",
    )
    dead_letter_subscription: Id = Field(
        default_factory=lambda known: known["dead_letter_topic"],
        description="keeps the dead letters (default: the id of the dead-letter topic)",
    )
    output_subscription: Id = Field(default="", description="keeps the predictions, for listeners")
    create: bool = Field(
        default=False, description="make the topics and subscriptions that are missing"
    )
    ack_deadline: int = Field(
        default=60,
        ge=10,
        le=600,
        description="seconds until what a daemon held that died comes again; also that of the "
        "subscriptions that --create makes",
    )

    @model_validator(mode="after")
    def _there_is_a_project(self) -> Self:
        if not self.project:
            msg = "project is required: give --project, or set GOOGLE_CLOUD_PROJECT"
            raise ValueError(msg)
        return self

    def describe_source(self) -> dict[str, str]:
        """See `Daemon.describe_source`; a subscription is what daemons share, as a group."""
        return {"group": self.subscription, "topic": self.input_topic}

    def describe_results(self) -> dict[str, str]:
        """See `Daemon.describe_results`."""
        return self.describe_topic(self.output_topic)


class RunPubSub(PubSubSettings):
    """Relay images from a Pub/Sub subscription to the inference API, and its predictions on.

    Example: python -m connectors pubsub --subscription images --output-topic predictions
    """

    subscription: Id = Field(description="images in")
    output_topic: Id = Field(description="predictions out")

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        if self.create and not self.input_topic:
            msg = "input_topic is needed by --create: a missing subscription is made of it"
            raise ValueError(msg)
        require_different(self, "input_topic", "output_topic", "dead_letter_topic")
        return self


class SendPubSub(Send, PubSubSettings):
    """Send images to a Pub/Sub topic.

    Example: python -m connectors send pubsub --input-topic images --test-set
    """

    input_topic: Id = Field(description="images in")
    ordering_keys: bool = Field(
        default=False,
        description="make each image's name its ordering key, at the price of a request for each",
    )

    def describe_sending(self) -> dict[str, str]:
        """See `Send.describe_sending`."""
        return self.describe_topic(self.input_topic)


class ListenPubSub(Listen, PubSubSettings):
    """Watch the predictions in a Pub/Sub topic.

    Example: python -m connectors listen pubsub --output-topic predictions
    """

    unused: ClassVar[frozenset[str]] = Listen.unused - {"window", "window_bytes"}

    output_topic: Id = Field(description="predictions out")


class WatchPubSub(LivePage, PubSubSettings):
    """Serve a live page of the predictions in a Pub/Sub topic.

    Pub/Sub finds no message by its id and keeps no dead letters for a second reader, so the page
    has neither images nor lag. As `listen`, it makes a subscription of its own.

    Example: python -m connectors watch pubsub --output-topic predictions
    """

    unused: ClassVar[frozenset[str]] = LivePage.unused - {"window", "window_bytes"}

    output_topic: Id = Field(description="predictions out")

    def describe_page(self) -> dict[str, str]:
        """See `LivePage.describe_page`."""
        return {"broker": f"Pub/Sub, project {self.project}", "predictions": self.output_topic}


class DeadPubSub(DeadLetters, PubSubSettings):
    """Dead letters in a Pub/Sub subscription."""

    @model_validator(mode="after")
    def _dead_letters_are_somewhere(self) -> Self:
        if not self.dead_letter_subscription:
            msg = "dead_letter_subscription is required; it also follows from --subscription"
            raise ValueError(msg)
        return self


class ListDeadPubSub(ListDead, DeadPubSub):
    """List dead letters: a line for each, and how many there are of each reason.

    What is looked at is nobody else's meanwhile, and given back at the end.

    Example: python -m connectors dlq list pubsub --subscription images
    """


class ShowDeadPubSub(ShowDead, DeadPubSub):
    """Show whole dead letters, or write the value of one to a file.

    What is looked at is nobody else's meanwhile, and given back at the end.

    Example: python -m connectors dlq show pubsub --subscription images --limit 1
    """


class ReplayPubSub(Replay, DeadPubSub):
    """Send dead letters back to the input topic, and take them out of their subscription.

    At least once: a dead letter that was sent is taken out only afterwards. The name is a mark:
    what comes back dead with it is not sent again under the same name. What --where leaves out
    stays.

    Example: python -m connectors dlq replay pubsub --subscription images --input-topic images
               --name after-fix
    """

    input_topic: Id = Field(description="where the dead letters came from")

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        require_different(self, "input_topic", "dead_letter_topic")
        return self


class CheckPubSub(Check, RunPubSub):
    """Check whether a daemon with these settings could work.

    Example: python -m connectors check pubsub --subscription images --output-topic predictions
    """


class DoctorPubSub(Doctor, RunPubSub):
    """Check everything, look at the surroundings too, and say what could be better.

    Example: python -m connectors doctor pubsub --subscription images --output-topic predictions
    """


class PrintConfigPubSub(PrintConfig, RunPubSub):
    """Print each setting, its value and where that came from.

    Example: python -m connectors print-config pubsub --config connector.toml --json
    """


VERBS: Mapping[str, type[Settings]] = {
    "run": RunPubSub,
    "send": SendPubSub,
    "listen": ListenPubSub,
    "watch": WatchPubSub,
    "dlq list": ListDeadPubSub,
    "dlq show": ShowDeadPubSub,
    "dlq replay": ReplayPubSub,
    "check": CheckPubSub,
    "doctor": DoctorPubSub,
    "print-config": PrintConfigPubSub,
}
"""What can be set for each verb."""
