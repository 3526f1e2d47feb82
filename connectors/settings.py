"""What an operator can set: flags > `CONNECTOR_<FLAG>` > `--config FILE` (TOML) > default.

One class for each verb and broker, built from small groups; the flags of the command line are
made from the fields. A verb is a class that knows no broker; a broker is added by its own settings,
what they join with each verb, and the lines of these in `KINDS`.
"""

from __future__ import annotations

import argparse
import os
import socket
import textwrap
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import Field, FilePath, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from .errors import Exit, Stop

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn, Self

    from pydantic.fields import FieldInfo

PREFIX = "CONNECTOR_"

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$")]
"""Of a topic or a subscription of Pub/Sub (https://cloud.google.com/pubsub/docs/pubsub-basics)."""

Condition = Annotated[
    str, Field(pattern=r"^(id|reason|key|header\.[^=]+)=", min_length=4, max_length=100)
]


def _differ(settings: BaseSettings, *names: str) -> None:
    """Refuse the same topic under two of these names: what goes out would come in, or be mixed."""
    if len({getattr(settings, name) for name in names}) < len(names):
        raise ValueError(f"{', '.join(names[:-1])} and {names[-1]} must be different topics")


class Settings(BaseSettings):
    """Sources of settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_prefix_target="all",
        env_ignore_empty=True,
        extra="ignore",  # a key of another verb; a key of none has been refused before
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
        validate_by_alias=True,
        validate_by_name=True,
        validate_default=False,
    )

    config: FilePath | None = Field(
        default=None, description="TOML file; keys are flags with underscores"
    )

    @classmethod
    def settings_customise_sources(  # noqa: D102 - the library's hook, its signature
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = {**env_settings(), **init_settings()}.get("config")
        file = InitSettingsSource(settings_cls, _read(Path(path)) if path else {})
        return init_settings, env_settings, file


class Service(Settings):
    """The inference API."""

    url: str = Field(
        default="http://127.0.0.1:8080/predictions/fmnist",
        description="where images are sent",
        pattern="^https?://[^/@]+(/|$)",  # a password does not belong into argv
    )
    token_file: Path | None = Field(
        default=None, description="TorchServe's key_file.json; read again whenever it changes"
    )
    timeout: Seconds = Field(
        default=20.0,
        description="seconds to wait for an answer; above the server's responseTimeout",
    )


class Pace(Settings):
    """Pace and patience."""

    pack: Count = Field(
        default=64, le=1024, description="most images in one request; 1,024 at most"
    )
    in_flight: Count = Field(default=4, description="most requests out at once")
    window: Count = Field(default=4096, description="most records held")
    window_bytes: Count = Field(
        default=64 << 20, description="most bytes held; one poll may exceed it"
    )
    commit_interval: Seconds = Field(
        default=0.1, description="least seconds from the end of one commit to the next"
    )
    tries: Count = Field(
        default=3, description="failures of a record, alone, before it is rejected"
    )
    dead_letter_row: Count = Field(
        default=100, description="dead letters in a row that stop the daemon (78)"
    )
    dead_letter_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="share of the last 1,000 records, likewise"
    )
    drain_limit: Seconds = Field(default=25.0, description="seconds to leave in after SIGTERM")
    stuck_after: Seconds = Field(
        default=120.0, description="seconds without a lap before giving up (70)"
    )


class Log(Settings):
    """Log."""

    log: Literal["text", "json"] = Field(default="text", description="form of the lines on stderr")
    status_every: Seconds = Field(default=10.0, description="seconds between two status lines")


class Monitoring(Settings):
    """Monitoring."""

    metrics_port: Port | None = Field(
        default=None,
        description="port of /metrics, /livez and /readyz; 0: a free one; none: not served",
    )
    metrics_address: str = Field(
        default="127.0.0.1", description="address of that port; whoever reaches it may read it"
    )
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


class Daemon(Service, Pace, Log, Monitoring):
    """The relay."""

    tombstones: Literal["dead-letter", "skip"] = Field(
        default="dead-letter", description="what becomes of records without a value"
    )


class Send(Settings):
    """What to send."""

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

    @model_validator(mode="after")
    def _something_to_send(self) -> Self:
        if bool(self.paths) == self.test_set:
            msg = "name either paths or --test-set"
            raise ValueError(msg)
        return self


class Listen(Form):
    """What to show."""

    from_beginning: bool = Field(default=False, description="also what is already in the topic")
    limit: Count | None = Field(default=None, description="stop after so many")
    idle_timeout: Seconds | None = Field(
        default=None, description="stop after so many silent seconds"
    )


class Letters(Form):
    """Which dead letters."""

    where: list[Condition] = Field(
        default_factory=list,
        max_length=8,
        description="only those of which this holds: id=, reason=, key= or header.NAME=, then the "
        "exact value (id: of the source record, or of the letter); repeated: all must hold",
    )
    limit: Count | None = Field(default=None, description="stop after so many")


class ListDead(Letters):
    """List dead letters."""


class ShowDead(Letters):
    """What becomes of the value."""

    output: Path | None = Field(
        default=None, description="file for the value of the one letter that is asked for"
    )


class Replay(Letters):
    """The replay."""

    input_topic: str = Field(description="where the letters came from", min_length=1)
    name: str = Field(
        description="of this replay; letters, digits, - and _", pattern="^[A-Za-z0-9_-]{1,64}$"
    )
    dry_run: bool = Field(default=False, description="count what would be sent, and send nothing")


class Check(Form, Service):
    """Check whether a daemon could work."""


class Doctor(Check):
    """Check everything."""


class PrintConfig(Form):
    """Print each setting."""


class KafkaSettings(Daemon):
    """Kafka."""

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092", description="host:port, comma separated"
    )
    input_topic: str = Field(default="", description="images in")
    output_topic: str = Field(default="", description="predictions out")
    dead_letter_topic: str = Field(
        default_factory=lambda known: f"{known['input_topic']}.dead",
        description="records without a prediction (default: <input topic>.dead)",
    )
    group: str = Field(default="fmnist", description="consumer group", min_length=1)
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        description="name of this daemon, unique in its group (default: <hostname>-<process id>); "
        "a stable name lets a restart fence its predecessor at once",
        min_length=1,
    )
    delivery: Literal["exactly-once", "at-least-once"] = Field(
        default="exactly-once", description="one transaction for results and offsets, or none"
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest",
        validation_alias="from",
        description="where a group without offsets begins",
    )
    session_timeout: Seconds = Field(
        default=10.0, description="seconds of silence before the group moves on without this daemon"
    )
    heartbeat_interval: Seconds = Field(default=2.0, description="seconds between two heartbeats")
    transaction_timeout: Seconds = Field(
        default=8.0, description="seconds before the broker aborts a transaction nobody ends"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to speak with the broker"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="how to log in"
    )
    sasl_username: str | None = Field(default=None, description="who logs in")
    sasl_password_file: FilePath | None = Field(
        default=None, description="file that holds the password"
    )
    ssl_cafile: FilePath | None = Field(default=None, description="authorities to trust (PEM)")
    ssl_certfile: FilePath | None = Field(
        default=None, description="certificate of this client (PEM)"
    )
    ssl_keyfile: FilePath | None = Field(default=None, description="its private key (PEM)")
    kafka: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,  # may hold secrets
        description="arguments for kafka-python's clients, as they are: a table of the file",
    )

    @model_validator(mode="after")
    def _login_is_complete(self) -> Self:
        login = (self.sasl_mechanism, self.sasl_username, self.sasl_password_file)
        if any(login) and not self.security_protocol.startswith("SASL"):
            msg = "security_protocol must be SASL_SSL or SASL_PLAINTEXT when a sasl_ flag is given"
            raise ValueError(msg)
        if any(login) and not all(login):
            msg = "sasl_mechanism, sasl_username and sasl_password_file go together"
            raise ValueError(msg)
        return self

    def sasl_password(self) -> str | None:
        """The password, without the newline that editors put at the end of a file."""
        file = self.sasl_password_file
        return file.read_text(encoding="utf-8").rstrip("\r\n") if file else None


class RunKafka(KafkaSettings):
    """Relay images from a Kafka topic to the inference API, and its predictions to another.

    Example: python -m connectors kafka --input-topic images --output-topic predictions
    """

    input_topic: str = Field(description="images in", min_length=1)
    output_topic: str = Field(description="predictions out", min_length=1)

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        _differ(self, "input_topic", "output_topic", "dead_letter_topic")
        return self


class SendKafka(Send, KafkaSettings):
    """Send images to a Kafka topic.

    Example: python -m connectors send kafka --input-topic images --test-set --limit 1000
    """

    input_topic: str = Field(description="images in", min_length=1)


class ListenKafka(Listen, KafkaSettings):
    """Watch the predictions in a Kafka topic.

    Example: python -m connectors listen kafka --output-topic predictions
    """

    output_topic: str = Field(description="predictions out", min_length=1)


class DeadKafka(Letters, KafkaSettings):
    """Dead letters of a Kafka topic."""

    input_topic: str = Field(description="where the letters came from", min_length=1)

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        _differ(self, "input_topic", "dead_letter_topic")
        return self


class ListDeadKafka(ListDead, DeadKafka):
    """List dead letters: a line for each, and how many there are of each reason.

    Example: python -m connectors dlq list kafka --input-topic images --where reason=failed
    """


class ShowDeadKafka(ShowDead, DeadKafka):
    """Show whole dead letters, or write the value of one to a file.

    Example: python -m connectors dlq show kafka --input-topic images --where id=images/3/1042
    """


class ReplayKafka(Replay, DeadKafka):
    """Send dead letters back to the input topic, each once under one name.

    The same name goes on where it stopped, with the same conditions; a new name begins with the
    oldest letter. It ends with the letters that were there when it began.

    Example: python -m connectors dlq replay kafka --input-topic images --name after-fix
    """


class CheckKafka(Check, RunKafka):
    """Check whether a daemon with these settings could work.

    Example: python -m connectors check kafka --input-topic images --output-topic predictions
    """


class DoctorKafka(Doctor, RunKafka):
    """Check everything, look at the surroundings too, and say what could be better.

    Example: python -m connectors doctor kafka --input-topic images --output-topic predictions
    """


class PrintConfigKafka(PrintConfig, RunKafka):
    """Print each setting, its value and where that came from.

    Example: python -m connectors print-config kafka --config connector.toml --json
    """


class PubSubSettings(Daemon):
    """Pub/Sub."""

    project: str = Field(
        default_factory=lambda: os.environ.get("GOOGLE_CLOUD_PROJECT", ""),
        description="Google Cloud project (required, unless GOOGLE_CLOUD_PROJECT names it)",
        pattern="^[^/ ]+$",
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
        _differ(self, "input_topic", "output_topic", "dead_letter_topic")
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


class ListenPubSub(Listen, PubSubSettings):
    """Watch the predictions in a Pub/Sub topic.

    Example: python -m connectors listen pubsub --output-topic predictions
    """

    output_topic: Id = Field(description="predictions out")


class DeadPubSub(Letters, PubSubSettings):
    """Dead letters in a Pub/Sub subscription."""

    @model_validator(mode="after")
    def _letters_are_somewhere(self) -> Self:
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

    At least once: a letter that was sent is taken out only afterwards. The name is a mark: what
    comes back dead with it is not sent again under the same name. What --where leaves out stays.

    Example: python -m connectors dlq replay pubsub --subscription images --input-topic images
               --name after-fix
    """

    input_topic: Id = Field(description="where the letters came from")

    @model_validator(mode="after")
    def _topics_differ(self) -> Self:
        _differ(self, "input_topic", "dead_letter_topic")
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


KINDS: Mapping[tuple[str, str], type[Settings]] = {
    ("run", "kafka"): RunKafka,
    ("send", "kafka"): SendKafka,
    ("listen", "kafka"): ListenKafka,
    ("dlq list", "kafka"): ListDeadKafka,
    ("dlq show", "kafka"): ShowDeadKafka,
    ("dlq replay", "kafka"): ReplayKafka,
    ("check", "kafka"): CheckKafka,
    ("doctor", "kafka"): DoctorKafka,
    ("print-config", "kafka"): PrintConfigKafka,
    ("run", "pubsub"): RunPubSub,
    ("send", "pubsub"): SendPubSub,
    ("listen", "pubsub"): ListenPubSub,
    ("dlq list", "pubsub"): ListDeadPubSub,
    ("dlq show", "pubsub"): ShowDeadPubSub,
    ("dlq replay", "pubsub"): ReplayPubSub,
    ("check", "pubsub"): CheckPubSub,
    ("doctor", "pubsub"): DoctorPubSub,
    ("print-config", "pubsub"): PrintConfigPubSub,
}
"""The grammar: which verbs there are, for which brokers, and what can be set for them."""

S = TypeVar("S", bound=Settings)


def load(kind: type[S], arguments: Sequence[str], prog: str) -> S:
    """The settings of one command, validated once.

    Raises Stop(2) with one sentence for anything unknown, missing or out of range.
    """
    flags = _flags(kind, arguments, prog)
    _refuse_unknown_variables()
    try:
        return kind(**flags)
    except ValidationError as error:
        raise Stop(_sentence(error), Exit.USAGE) from None
    except SettingsError as error:
        raise Stop(
            f"the environment holds a value that cannot be read: {error}", Exit.USAGE
        ) from None


class Setting(NamedTuple):
    """One setting as it holds; what may be secret is hidden."""

    name: str
    value: Any
    origin: Literal["flag", "environment", "file", "default"]


def explained(settings: Settings, arguments: Sequence[str], prog: str) -> Iterator[Setting]:
    """Each setting, and which source it came from; takes what `load` was given."""
    flags = _flags(type(settings), arguments, prog)
    variables = {name.upper() for name, value in os.environ.items() if value}
    file = _read(settings.config) if settings.config else {}
    for name, field in type(settings).model_fields.items():
        key = _key(name, field)
        value = _shown(getattr(settings, name))
        if key in flags:
            yield Setting(key, value, "flag")
        elif PREFIX + key.upper() in variables:
            yield Setting(key, value, "environment")
        else:
            yield Setting(key, value, "file" if key in file else "default")


def _shown(value: object) -> object:
    """A table goes to the library as it is: any text in it, and any table, may be a secret."""
    if isinstance(value, dict):
        return {k: v if isinstance(v, bool | int | float) else "***" for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    flag = _flag(str(first["loc"][0])) if first["loc"] else ""
    if first["type"] == "missing":
        return f"{flag} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{flag}: {message[0].lower()}{message[1:]}" if flag else message


def _read(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Stop(f"{path} cannot be read as TOML: {error}", Exit.USAGE) from None
    _refuse_unknown(str(path), values, _keys())
    return values


def _refuse_unknown_variables() -> None:
    known = {PREFIX + key.upper() for key in _keys()}
    _refuse_unknown("the environment", [n for n in os.environ if n.startswith(PREFIX)], known)


def _refuse_unknown(where: str, names: Iterable[str], known: Collection[str]) -> None:
    """A name that no command knows would be taken for an effect that it has not."""
    for name in names:
        if name not in known:
            raise Stop(f"{where} sets {name}, which is unknown{_nearest(name, known)}", Exit.USAGE)


def _keys() -> set[str]:
    return {_key(*field) for kind in KINDS.values() for field in kind.model_fields.items()}


def _nearest(word: str, known: Collection[str]) -> str:
    matches = get_close_matches(word, known, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _key(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or name)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Stop(f"{message} ({self.prog} --help lists the flags)", Exit.USAGE)


def _flags(kind: type[Settings], arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """What the command line sets, as text: the model converts it."""
    parser = _parser(kind, prog)
    found, unknown = parser.parse_known_intermixed_args(list(arguments))
    for word in unknown:
        flag = word.partition("=")[0]
        known = [f for action in parser._actions for f in action.option_strings]  # noqa: SLF001 - no public list
        parser.error(f"{flag} is unknown{_nearest(flag, known)}")
    return vars(found)


def _parser(kind: type[Settings], prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [flags]" + (" [PATH ...]" if "paths" in kind.model_fields else ""),
        description=textwrap.dedent(f"    {kind.__doc__}"),
        epilog="Each flag can also be set as CONNECTOR_<FLAG>, or in the file of --config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, fields in reversed(list(_groups(kind))):
        group = parser.add_argument_group(title)
        for name, field in fields.items():
            _add_flag(group, _key(name, field), field)
    return parser


def _groups(kind: type[Settings]) -> Iterator[tuple[str, dict[str, FieldInfo]]]:
    """The fields under the class that first named them."""
    seen: set[str] = set()
    for group in reversed(kind.__mro__):
        if issubclass(group, Settings):
            fields = {n: kind.model_fields[n] for n in group.model_fields if n not in seen}
            seen |= set(fields)
            if fields:
                yield str(group.__doc__).rstrip("."), fields


def _add_flag(group: argparse._ArgumentGroup, key: str, field: FieldInfo) -> None:
    if field.annotation == dict[str, Any]:
        return  # a table has no flag
    if field.annotation == list[Path]:
        group.add_argument(key, nargs="*", metavar="PATH", help=field.description)
    elif get_origin(field.annotation) is list:
        form = "FIELD=VALUE"
        group.add_argument(_flag(key), action="append", metavar=form, help=field.description)
    elif field.annotation is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(_flag(key), dest=key, action=action, help=field.description)
    else:
        group.add_argument(_flag(key), dest=key, metavar=_metavar(field), help=_help(field))


def _metavar(field: FieldInfo) -> str:
    choices = [str(choice) for choice in _choices(field.annotation)]
    return "{" + ",".join(choices) + "}" if choices else "VALUE"


def _choices(annotation: object) -> Iterator[object]:
    for part in get_args(annotation):
        yield from (part,) if isinstance(part, str) else _choices(part)


def _help(field: FieldInfo) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required():
        return f"{text} (required)"
    return (
        text
        if field.default in (None, "") or field.default_factory
        else f"{text} (default: {field.default})"
    )
