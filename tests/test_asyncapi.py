"""docs/asyncapi.yaml is valid, leads nowhere in vain, and describes what really is published."""

from __future__ import annotations

import json
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml

from connectors import __version__, codec, daemon
from connectors.brokers.kafka import messages as kafka
from connectors.brokers.kafka.settings import RunKafka
from connectors.brokers.pubsub import messages as pubsub
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.headers import REPLAY
from connectors.records import Rejection, Settled
from tests.conftest import missing
from tests.connectors.test_cloudevents import KAFKA_EXAMPLE, PUBSUB_EXAMPLE
from tests.schemas import as_object
from tests.test_schemas import predicted, record
from tools.schemas import find_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from connectors.verbs import Daemon

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs"
TOOLS = ROOT / "build" / "deploy-venv"
DOCUMENT: dict[str, Any] = yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())

PROGRAM = """
import json, sys, jsonschema
validator = jsonschema.Draft7Validator(json.load(open(sys.argv[1])))
print(json.dumps([error.message for error in validator.iter_errors(json.load(sys.stdin))]))
"""


def find_faults_of_document(document: dict[str, Any]) -> list[str]:
    """Ask AsyncAPI's own schema, by the interpreter that has a validator for it."""
    schema = TOOLS / "asyncapi.json"
    if not schema.exists():
        missing("AsyncAPI's schema is not there: install npm, then `make deploy-venv`")
    done = subprocess.run(
        [str(TOOLS / "bin" / "python"), "-c", PROGRAM, str(schema)],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: list[str] = json.loads(done.stdout)
    return found


def follow(reference: str) -> Any:  # noqa: ANN401 - any part of a document
    """Return what a reference of the document leads to; raises KeyError or OSError if nothing."""
    file, _, pointer = reference.partition("#")
    part = json.loads((FOLDER / file).read_text()) if file else DOCUMENT
    for step in pointer.split("/")[1:]:
        part = part[step]
    return part


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    """Follow references and formats of schemas down to the part itself."""
    while "$ref" in part or "schemaFormat" in part:
        part = follow(part["$ref"]) if "$ref" in part else part["schema"]
    return part


def list_references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for inner in part.values():
            yield from list_references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from list_references(inner)


def test_the_document_is_valid_and_a_typo_in_it_is_none() -> None:
    assert find_faults_of_document(DOCUMENT) == []
    for path in (("operations", "sendResults"), ("channels", "images"), ("components", "messages")):
        spoiled = deepcopy(DOCUMENT)
        spoiled[path[0]][path[1]]["mesages"] = 1
        assert len(find_faults_of_document(spoiled)) == 1


def test_each_reference_leads_somewhere() -> None:
    references = set(list_references(DOCUMENT))
    assert {"schemas/result.json", "schemas/dead-letter-headers.json"} <= references
    for reference in references:
        assert follow(reference)


def test_no_description_is_torn_at_a_comma() -> None:
    assert '": null' not in json.dumps(DOCUMENT)


def test_the_version_is_that_of_the_connectors() -> None:
    assert DOCUMENT["info"]["version"] == __version__


def find_message(operation: str, number: int = 0) -> dict[str, Any]:
    reference: str = DOCUMENT["operations"][operation]["messages"][number]["$ref"]
    return resolve(follow(reference))


def find_record_faults(
    message: dict[str, Any], headers: dict[str, str], value: object = None
) -> list[str]:
    """Compare a record with a message of the document; without a value only its headers."""
    described = resolve(message["headers"])
    ours = {name for name in headers if name.startswith(("connector.", "ce_", "ce-", "__connect"))}
    faults = [f"{name} is not described" for name in ours - described["properties"].keys()]
    if value is not None:
        faults += find_faults(value, resolve(message["payload"]))
    return [*faults, *find_faults(headers, described)]


def make_builder(
    settings: Daemon, monkeypatch: pytest.MonkeyPatch
) -> kafka.MessageBuilder | pubsub.MessageBuilder:
    monkeypatch.setattr(kafka, "partition_counts", lambda _, topics: dict.fromkeys(topics, 3))
    _, encode = daemon.choose_format(settings)
    if isinstance(settings, RunKafka):
        return kafka.MessageBuilder(settings, encode)
    assert isinstance(settings, RunPubSub)
    return pubsub.MessageBuilder(settings, encode)


def settings_of(broker: str, form: Literal["plain", "cloudevents"]) -> Daemon:
    if broker == "kafka":
        return RunKafka(input_topic="images", output_topic="predictions", format=form)
    return RunPubSub(
        project="mine-1", subscription="images", output_topic="predictions", format=form
    )


IDS = {"kafka": "images/3/1042", "pubsub": "images/8134567890123456"}
EXAMPLES = {"kafka": KAFKA_EXAMPLE, "pubsub": PUBSUB_EXAMPLE}


@pytest.mark.parametrize("broker", IDS)
@pytest.mark.parametrize("form", ["plain", "cloudevents"])
@pytest.mark.parametrize("came_as", ["event", "image"])
def test_what_is_published_is_described(
    broker: str,
    form: Literal["plain", "cloudevents"],
    came_as: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder = make_builder(settings_of(broker, form), monkeypatch)
    headers = EXAMPLES[broker] if came_as == "event" and form == "cloudevents" else ()
    one = record(IDS[broker], (*headers, ("a", b"1"), (REPLAY, b"one")))
    result = publish(builder, Settled(one, predicted()))
    number = 1 if broker == "pubsub" and form == "cloudevents" else 0
    message = find_message("sendResultEvents" if form == "cloudevents" else "sendResults", number)
    published = headers_of(result)
    assert find_record_faults(message, published, json.loads(result.value or b"")) == []
    assert ("ce_id" in published or "ce-id" in published) == (form == "cloudevents")
    dead = publish(builder, Settled(one, Rejection("failed", "why", 503, 3)))
    letter = headers_of(dead)
    assert as_object(headers).items() <= letter.items()
    assert find_faults(letter, resolve(find_message("sendDeadLetters")["headers"])) == []


def publish(
    builder: kafka.MessageBuilder | pubsub.MessageBuilder, settled: Settled
) -> kafka.Outgoing | pubsub.Outgoing:
    """Return what is published first: the largest form."""
    fallbacks: Iterator[kafka.Outgoing | pubsub.Outgoing] = builder.fallbacks(settled)
    return next(fallbacks)


def headers_of(published: kafka.Outgoing | pubsub.Outgoing) -> dict[str, str]:
    if isinstance(published, kafka.Outgoing):
        return as_object(published.headers)
    return dict(published.attributes)


@pytest.mark.parametrize("broker", IDS)
def test_the_examples_of_the_bindings_are_images_as_described(broker: str) -> None:
    message = find_message("receiveImageEvents", list(IDS).index(broker))
    assert find_record_faults(message, as_object(EXAMPLES[broker])) == []
    assert find_record_faults(message, {}) != []


def test_a_result_that_is_not_as_described_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = make_builder(settings_of("kafka", "cloudevents"), monkeypatch)
    result = publish(builder, Settled(record(), predicted()))
    message, headers = find_message("sendResultEvents"), headers_of(result)
    for name in ("ce_id", "ce_type", "ce_source", "ce_specversion", "content-type"):
        assert find_record_faults(message, {n: v for n, v in headers.items() if n != name})
    for wrong in ({"ce_type": "x"}, {"ce_time": "now"}, {"ce_new": "1"}, {"connector.new": "1"}):
        assert find_record_faults(message, headers | wrong)
    plain = codec.encode(Settled(record(), predicted()))
    assert plain
    assert find_record_faults(message, as_object(plain.headers))
