"""Settings of the verbs, whichever broker they are for."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, FilePath, model_validator

from .settings import Settings, hide_query, matching, renamed_from
from .tls import is_loopback, require_tls_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self


Seconds = Annotated[float, Field(gt=0)]

Count = Annotated[int, Field(ge=1)]

Port = Annotated[int, Field(ge=0, le=65535)]

CONDITIONS = "id=, reason=, key= or header.NAME="


def require_condition(condition: str) -> str:
    """Refuse what is none, with the field that was probably meant."""
    field, equals, _ = condition.partition("=")
    if equals and re.fullmatch(r"id|reason|key|header\..+", field):
        return condition
    meant = get_close_matches(field, ("id", "reason", "key"), n=1) if equals else []
    hint = f"; did you mean {meant[0]}=?" if meant else ""
    raise ValueError(f"a condition begins with {CONDITIONS}, then the value{hint}")


Condition = Annotated[str, Field(min_length=4, max_length=100), AfterValidator(require_condition)]
"""Of a dead letter."""


def require_different(settings: Settings, *names: str) -> None:
    """Refuse the same topic under two of these names: what goes out would come in, or be mixed."""
    if len({getattr(settings, name) for name in names}) < len(names):
        raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} must be different topics")


class Address(NamedTuple):
    """What the URL of a `v1` or `v2` model consists of."""

    root: str  # all before /v1 or /v2
    model: str
    version: str  # empty: the server chooses


_MODEL = r"models/(?P<model>[^/:?]+)(/versions/(?P<version>[^/:?]+))?"

URLS = {
    "v1": (
        re.compile(rf"(?P<root>[^?]*)/v1/{_MODEL}:predict(\?.*)?"),
        "http://HOST:8501/v1/models/NAME:predict",
    ),
    "v2": (
        re.compile(rf"(?P<root>[^?]*)/v2/{_MODEL}/infer(\?.*)?"),
        "http://HOST:8000/v2/models/NAME/infer",
    ),
}
"""The form of the whole URL in each standard protocol, and an example."""


def require_url(url: str) -> str:
    """Refuse what has no host or no port that one could connect to; it may hold a secret."""
    try:
        parts = urlsplit(url)
        known = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port beyond 65,535, half an IPv6 address
        known = False
    if not known:
        msg = "its host or port cannot be: write https://host:port/path or https://[::1]:port/path"
        raise ValueError(msg)
    return url


Url = Annotated[
    str,
    matching(  # a password does not belong into argv
        r"https?://[^/@\s]+(/\S*)?",
        "it must begin with http:// or https:// and a host, without a password, such as "
        "http://127.0.0.1:8080/predictions/fmnist",
    ),
    AfterValidator(require_url),
]


class Service(Settings):
    """The inference API."""

    url: Url = Field(
        default="http://127.0.0.1:8080/predictions/fmnist",
        description="where images are sent, the whole address; v2: http://HOST:8000/v2/models/NAME/"
        "infer (Triton; port 8080 MLServer, KServe; OpenVINO's --rest_port) or .../versions/V/infer"
        "; v1: http://HOST:8501/v1/models/NAME:predict (TensorFlow Serving; 8080 KServe)",
    )
    token_file: Path | None = Field(
        default=None, description="TorchServe's key_file.json; read again whenever it changes"
    )
    url_cafile: FilePath | None = Field(
        default=None,
        description="authorities to trust with an https URL (PEM), in place of the public ones",
    )
    url_certfile: FilePath | None = Field(
        default=None, description="certificate to show to an https URL (PEM)"
    )
    url_keyfile: FilePath | None = Field(
        default=None, description="its private key (PEM); none: it stands in the certificate's file"
    )
    timeout: Seconds = Field(
        default=20.0,
        description="seconds to wait for a whole answer; above the server's responseTimeout",
    )
    header_file: Path | None = Field(
        default=None,
        description="headers to send along, one `Name: value` a line, such as Authorization; read "
        "again whenever it changes; keep it at mode 0600",
    )
    canary: Path | None = Field(
        default=None,
        description="an image that the model certainly answers, to tell a bad record from a sick "
        "service (default: a blank image of 28 x 28)",
    )
    connection_age: Seconds = Field(
        default=60.0,
        description="seconds after which a connection to the service is replaced, at random from "
        "half of them on, so that new servers behind one address get work",
    )


class Protocol(Settings):
    """The protocol of the inference API."""

    protocol: Literal["fmnist", "v1", "v2"] = Field(
        default="fmnist",
        description="of the server: this project's archive; KServe v1, TensorFlow Serving; Open "
        "Inference Protocol (Triton, KServe, MLServer, OpenVINO)",
    )
    max_batch: Count | None = Field(
        default=None, description="most images that the model takes at once; bounds --pack"
    )
    labels: Path | None = Field(
        default=None,
        description="file of one label a line, in the order of the model's scores: the result is a "
        "class; without, it holds the server's own outputs",
    )
    scores: Literal["probabilities", "logits"] = Field(
        default="probabilities", description="what the model's scores are; with --labels"
    )
    tensor_input: str | None = Field(
        default=None,
        min_length=1,
        description="name of the input that takes image files; v2: required, `check` lists them; "
        "v1: only where an instance is an object of named inputs",
    )
    tensor_output: str | None = Field(
        default=None, min_length=1, description="name of the one output that is wanted"
    )
    v2_binary: bool = Field(
        default=True,
        description="send images by the binary tensor data extension (Triton, OpenVINO); without "
        "it as base64 in JSON (MLServer, KServe's SDK)",
    )
    v2_shape: Literal["n", "nx1"] = Field(
        default="n", description="shape of a tensor of n images; nx1 where `check` says so"
    )


class Server(Service, Protocol):
    """The inference server."""

    @model_validator(mode="after")
    def _whole_url(self) -> Self:
        if self.protocol != "fmnist" and not self.address():
            example = URLS[self.protocol][1]
            raise ValueError(
                f"with --protocol {self.protocol} --url is the whole address of the model, such as "
                f"{example}"
            )
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> Self:
        idle = [name for name in ("labels", "tensor_input", "tensor_output") if getattr(self, name)]
        if self.protocol == "fmnist" and idle:
            flag = "--" + idle[0].replace("_", "-")
            raise ValueError(f"{flag} has no effect here: give --protocol v1 or v2 as well")
        if self.scores != "probabilities" and not self.labels:
            raise ValueError("--scores has no effect here: give --labels as well")
        return self

    def address(self) -> Address | None:
        """Return what the URL consists of, in the protocols that say so."""
        if self.protocol == "fmnist":
            return None
        found = URLS[self.protocol][0].fullmatch(self.url)
        return Address(found["root"], found["model"], found["version"] or "") if found else None

    @model_validator(mode="after")
    def _certificates_of_the_url_can_be_used(self) -> Self:
        files = self.url_cafile, self.url_certfile, self.url_keyfile
        if any(files) and not self.url.startswith("https://"):
            msg = "url_cafile, url_certfile and url_keyfile need a url that begins with https://"
            raise ValueError(msg)
        require_tls_files("url_", *files)
        return self

    @property
    def shown_url(self) -> str:
        """The URL for a person's eyes."""
        return hide_query(self.url)

    def list_exposures(self) -> Iterator[str]:
        """Say what others on the way could read or feign, each in a sentence with the fix."""
        url = urlsplit(self.url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            what = "the token and the images go" if self.token_file else "the images go"
            yield f"{what} to {url.netloc} in the clear: give an https:// --url"


class Pace(Settings):
    """Pace and limits."""

    pack: Count = Field(
        default=256, le=1024, description="most images in one request; 1,024 at most"
    )
    in_flight: Count = Field(default=6, description="most requests out at once")
    window: Count = Field(default=4096, description="most records held")
    window_bytes: Count = Field(
        default=64 << 20, description="most bytes held; one poll may exceed it"
    )
    commit_interval: Seconds = Field(
        default=0.05, description="least seconds from the end of one commit to the next"
    )
    tries: Count = Field(
        default=3, description="failures of a record, alone, before it is rejected"
    )
    doubt_after: Seconds = Field(
        default=60.0,
        description="seconds of refusals (503 and the like) after which a record is suspected",
    )
    max_consecutive_dead_letters: Count = Field(
        default=100,
        description="dead letters in a row that stop the daemon (78)",
        json_schema_extra=renamed_from("dead_letter_row"),
    )
    max_dead_letter_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5,
        description="dead letters among the last 1,000 records that stop the daemon, as a ratio",
        json_schema_extra=renamed_from("dead_letter_share"),
    )
    drain_limit: Seconds = Field(default=25.0, description="seconds to leave in after SIGTERM")
    stuck_after: Seconds = Field(
        default=120.0, description="seconds without progress of the main loop before giving up (70)"
    )
    when_given_up: Literal["exit", "park"] = Field(
        default="exit",
        description="what to do where only a person can help: end (78), or leave the group and "
        "wait for SIGTERM with /readyz red, under a supervisor that would start it again",
    )


class Log(Settings):
    """Log."""

    log: Literal["text", "json"] = Field(default="text", description="form of the lines on stderr")
    status_every: Seconds = Field(default=10.0, description="seconds between two status lines")


BASELINE_URL: Any = Field(
    default=None,
    description="where the model is described, such as "
    "http://127.0.0.1:8081/models/fmnist?customized=true: for the figures of drift; "
    "none: they are not measured",
)
"""Of who measures drift: the daemon and the live page."""


class Monitoring(Settings):
    """Monitoring."""

    metrics_port: Port | None = Field(
        default=None,
        description="port of /metrics, /livez and /readyz; 0: a free one; none: not served",
    )
    metrics_address: str = Field(
        default="127.0.0.1", description="address of that port; whoever reaches it may read it"
    )
    baseline_url: Url | None = BASELINE_URL
    stalled_after: Seconds = Field(
        default=300.0,
        description="seconds in which a partition with lag makes no progress until /livez is red; "
        "an outage of the service does not count",
    )


class Form(Settings):
    """Form of the output."""

    json_lines: bool = Field(
        default=False,
        validation_alias="json",
        description="one JSON object per line instead of text",
    )


class Daemon(Server, Pace, Log, Monitoring):
    """The relay."""

    messaging_system: ClassVar[str] = ""
    """The broker, in the words of OpenTelemetry."""

    attribute_prefix: ClassVar[str] = ""
    """How the names of headers begin that are attributes of a CloudEvent."""

    messaging_group: ClassVar[str] = "messaging.consumer.group.name"
    """The attribute of what daemons share, in the words of OpenTelemetry."""

    tombstones: Literal["dead-letter", "skip"] = Field(
        default="dead-letter", description="what becomes of records without a value"
    )
    format: Literal["plain", "cloudevents"] = Field(
        default="plain",
        description="of results: plain JSON, or the same as events of CloudEvents 1.0 in binary "
        "mode, as records may then be, too",
    )

    def describe_source(self) -> dict[str, str]:
        """Return `group` and `topic`, labels of `connector_info`: who reads, and what."""
        return {"group": "", "topic": ""}

    def describe_topic(self, topic: str) -> dict[str, str]:
        """Return a topic in the words of OpenTelemetry: attributes of spans."""
        found = {"messaging.system": self.messaging_system, "messaging.destination.name": topic}
        return {name: value for name, value in found.items() if value}

    def describe_traces(self) -> dict[str, str]:
        """Return the attributes of each span of a pack."""
        source = self.describe_source()
        shared = {self.messaging_group: source["group"]} if source["group"] else {}
        return {**self.describe_topic(source["topic"]), **shared}

    def describe_results(self) -> dict[str, str]:
        """Return the attributes of each span of a result."""
        return self.describe_topic("")


DAEMON_ONLY = frozenset(Daemon.model_fields) - frozenset(Settings.model_fields)
"""Settings that only a daemon needs, and who checks whether one could work."""


class Send(Settings):
    """What to send."""

    unused: ClassVar[frozenset[str]] = DAEMON_ONLY

    paths: list[Path] = Field(
        default_factory=list, description="image files, or folders that hold some"
    )
    test_set: bool = Field(default=False, description="send Fashion-MNIST's 10,000 test images")
    data: Path = Field(default=Path("data"), description="folder of the data set")
    limit: Count | None = Field(default=None, description="stop after so many")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="most images per second"
    )
    repeat: Count = Field(default=1, description="send everything so many times")

    def describe_sending(self) -> dict[str, str]:
        """Return the attributes of each span of an image that is sent."""
        return {}

    @model_validator(mode="after")
    def _something_to_send(self) -> Self:
        if bool(self.paths) == self.test_set:
            msg = "name either paths or --test-set"
            raise ValueError(msg)
        return self


class Listen(Form):
    """What to show."""

    unused: ClassVar[frozenset[str]] = DAEMON_ONLY

    from_beginning: bool = Field(default=False, description="also what is already in the topic")
    limit: Count | None = Field(default=None, description="stop after so many")
    idle_timeout: Seconds | None = Field(
        default=None, description="stop after so many silent seconds"
    )


class LivePage(Settings):
    """The page."""

    unused: ClassVar[frozenset[str]] = DAEMON_ONLY - {"baseline_url"}

    page_port: Port = Field(default=8050, description="port of the page; 0: a free one")
    page_address: str = Field(
        default="127.0.0.1",
        description="address of that port; whoever reaches it sees images and labels",
    )
    baseline_url: Url | None = BASELINE_URL

    def describe_page(self) -> dict[str, str]:
        """Return what stands in the head of the page, by its name."""
        return {}


class DeadLetters(Form):
    """Which dead letters."""

    unused: ClassVar[frozenset[str]] = DAEMON_ONLY

    where: list[Condition] = Field(
        default_factory=list,
        max_length=8,
        description="only those of which this holds: id=, reason=, key= or header.NAME=, then the "
        "exact value (id: of the source record, or of the dead letter); repeated: all must hold",
    )
    limit: Count | None = Field(default=None, description="stop after so many")


class ListDead(DeadLetters):
    """List dead letters."""


class ShowDead(DeadLetters):
    """What becomes of the value."""

    output: Path | None = Field(
        default=None, description="file for the value of the one dead letter that is asked for"
    )


class Replay(DeadLetters):
    """The replay."""

    input_topic: str = Field(description="where the dead letters came from", min_length=1)
    name: Annotated[
        str, matching("[A-Za-z0-9_-]{1,64}", "a name has 1 to 64 letters, digits, - and _")
    ] = Field(description="of this replay; letters, digits, - and _")
    dry_run: bool = Field(default=False, description="count what would be sent, and send nothing")


class Check(Form, Server, Pace):
    """Check whether a daemon could work."""


class Doctor(Check):
    """Check everything."""


class PrintConfig(Form):
    """Print each setting."""
