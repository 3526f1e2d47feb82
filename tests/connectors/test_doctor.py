from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image as Pillow

from connectors.brokers.kafka.settings import PrintConfigKafka, RunKafka
from connectors.codec import MAX_IMAGE_BYTES
from connectors.command_line import Setting, explain, load
from connectors.commands import doctor
from connectors.commands.doctor import (
    Finding,
    ask_service,
    render_findings,
    render_settings,
    run_check,
    run_checks,
)
from connectors.errors import Exit, Stop
from connectors.images import pad_canary
from connectors.records import Advice, Ok
from tests.connectors.test_client import Script, Service, predictions, unused_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.connectors.test_client import Asked

TOPICS = ["--input-topic", "images", "--output-topic", "predictions"]


def settings(**given: Any) -> RunKafka:  # noqa: ANN401 - any field
    return RunKafka(input_topic="images", output_topic="predictions", **given)


def failing(code: Exit = Exit.UNAVAILABLE) -> Callable[[], Ok | Advice]:
    def check() -> Ok | Advice:
        raise Stop("create the topic", code)

    return check


# findings


def test_a_check_is_ok_or_advises_or_fails() -> None:
    assert run_check(("a", lambda: Ok("fine"))) == Finding("a", "ok", "fine")
    assert run_check(("a", lambda: Advice("better"))) == Finding("a", "advice", "better")
    assert run_check(("a", failing())) == Finding(
        "a", "failed", "create the topic", Exit.UNAVAILABLE
    )


def test_what_is_unexpected_is_not_a_finding() -> None:
    with pytest.raises(ZeroDivisionError):
        run_check(("a", lambda: Ok(str(1 / 0))))


def test_after_a_failure_the_rest_is_skipped() -> None:
    found = list(
        run_checks(
            [("a", lambda: Ok("x")), ("b", failing()), ("c", failing()), ("d", lambda: Ok(""))]
        )
    )
    assert [one.result for one in found] == ["ok", "failed", "skipped", "skipped"]
    assert found[3].text == "b comes first"


def lines(*findings: Finding, as_json: bool = False) -> tuple[list[str], Exit]:
    shown: list[str] = []
    try:
        for line in render_findings(findings, as_json=as_json):
            shown.append(line)  # noqa: PERF402 - what came before the end counts
    except Stop as stop:
        return shown, stop.code
    return shown, Exit.OK


def test_each_finding_is_a_line_and_the_first_failure_gives_the_exit_code() -> None:
    fine = Finding("broker", "ok", "1 at localhost")
    shown, code = lines(
        fine, run_check(("topics", failing())), run_check(("service", failing(Exit.USAGE)))
    )
    assert shown[:2] == [
        "ok      broker        1 at localhost",
        "failed  topics        create the topic",
    ]
    assert len(shown) == 3
    assert code == Exit.UNAVAILABLE


def test_advice_is_no_failure() -> None:
    assert lines(Finding("group", "advice", "start a daemon"))[1] == Exit.OK


def test_findings_can_be_read_by_a_machine() -> None:
    shown, _ = lines(run_check(("topics", failing())), as_json=True)
    assert json.loads(shown[0]) == {
        "check": "topics",
        "result": "failed",
        "text": "create the topic",
    }


# the service


def test_a_service_that_predicts_is_told_with_its_model() -> None:
    with Service(Script(body=predictions(1))).serving() as url:
        found = list(doctor.run_all(settings(url=url), [], thorough=False))[-1]
    assert found.check == "service"
    text = found.text
    assert " answers in " in text
    assert text.split()[:2] == model_of(predictions(1))


def model_of(body: bytes) -> list[str]:
    model = json.loads(body)["model"]
    return [model["name"], model["version"]]


ERROR = {"predictions": [{"error": {"code": "not_an_image", "message": "no"}}]}


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Script(status=503, body=b'{"type": "ServiceUnavailableException"}'), "503"),
        (Script(status=500, body=b'{"type": "InternalServerException"}'), "500"),
        (Script(body=json.dumps(ERROR | {"model": {"name": "a", "version": "1"}}).encode()), "no"),
    ],
)
def test_a_service_that_does_not_predict_is_told_with_its_reason(script: Script, why: str) -> None:
    with Service(script).serving() as url, pytest.raises(Stop, match=why) as stop:
        ask_service(settings(url=url), 5.0)
    assert stop.value.code == Exit.UNAVAILABLE
    assert "\n" not in str(stop.value)


def test_a_service_that_is_not_there_is_told_with_its_address() -> None:
    url = f"http://127.0.0.1:{unused_port()}/predictions/fmnist"
    with pytest.raises(Stop, match="start it, or correct --url") as stop:
        ask_service(settings(url=url), 5.0)
    assert url in str(stop.value)


@pytest.mark.parametrize("path", ["v1/models/a:predict", "v2/models/a/infer"])
def test_the_address_of_another_protocol_is_told_with_its_flag(path: str) -> None:
    url = f"http://127.0.0.1:{unused_port()}/{path}"
    with pytest.raises(Stop, match=f"give --protocol {path[:2]}, as the address says"):
        ask_service(settings(url=url), 5.0)


def test_a_silent_service_is_not_waited_for() -> None:
    service = Service(Script(body=predictions(1)))
    service.gate.clear()
    with service.serving() as url, pytest.raises(Stop, match="does not predict"):
        ask_service(settings(url=url), 0.05)


class Narrow(Service):
    """A service that takes requests of at most `most` bytes and answers others with `refusal`."""

    def __init__(self, most: int, refusal: Script) -> None:
        super().__init__(Script(body=predictions(1)))
        self.most, self.refusal = most, refusal

    def next(self, peer: tuple[str, int], asked: Asked) -> Script:
        script = super().next(peer, asked)
        return script if len(asked.body) <= self.most else self.refusal


def asked_about_size(service: Service) -> Finding:
    with service.serving() as url:
        return list(doctor.run_all(settings(url=url), [], thorough=True))[-1]


TOO_LARGE = {"predictions": [{"error": {"code": "too_large", "message": "too many bytes"}}]}


@pytest.mark.parametrize(
    "refusal",
    [
        Script(status=413),
        Script(status=413, body=b"<html>Request Entity Too Large</html>"),
        Script(body=json.dumps(TOO_LARGE | {"model": {"name": "a", "version": "1"}}).encode()),
    ],
)
@pytest.mark.parametrize("most", [1 << 20, MAX_IMAGE_BYTES])
def test_a_service_that_takes_less_than_the_largest_image_is_told_with_the_fix(
    most: int, refusal: Script
) -> None:
    found = asked_about_size(Narrow(most, refusal))
    assert (found.check, found.result, found.code) == ("request size", "advice", Exit.OK)
    for word in ("max_request_size", "client_max_body_size", str(doctor.REQUEST_BYTES), "5000000"):
        assert word in found.text
    assert "\n" not in found.text


@pytest.mark.parametrize("most", [MAX_IMAGE_BYTES + 1000, doctor.REQUEST_BYTES])
def test_a_service_that_takes_the_largest_image_is_well(most: int) -> None:
    service = Narrow(most, Script(status=413))
    found = asked_about_size(service)
    assert (found.check, found.result) == ("request size", "ok")
    assert max(len(one.body) for one in service.asked) > MAX_IMAGE_BYTES


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (Script(status=503, body=b"come again"), "503: come again"),
        (Script(status=500, body=b'{"type": "InternalServerException"}'), "500"),
        (Script(body=json.dumps(ERROR | {"model": {"name": "a", "version": "1"}}).encode()), "no"),
    ],
)
def test_what_a_service_says_to_the_largest_image_is_told_when_it_decides_nothing(
    refusal: Script, why: str
) -> None:
    found = asked_about_size(Narrow(1 << 20, refusal))
    assert found.result == "advice"
    assert "not known" in found.text
    assert f"({why}" in found.text


@pytest.mark.parametrize("thorough", [False, True])
def test_who_does_not_predict_or_is_only_checked_is_not_sent_the_largest_image(
    thorough: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    service = Service(Script(status=503) if thorough else Script(body=predictions(1)))
    with service.serving() as url:
        found = list(doctor.run_all(settings(url=url), [], thorough=thorough))
    assert len(service.asked) == 1
    assert found[-1].result == ("skipped" if thorough else "ok")


@pytest.mark.parametrize("size", [1_000, 70_000, MAX_IMAGE_BYTES])
def test_the_padded_canary_is_the_blank_image_in_a_file_of_that_size(size: int) -> None:
    image = pad_canary(size)
    assert len(image.data) == size
    with Pillow.open(BytesIO(image.data)) as opened:
        assert opened.tobytes() == bytes(28 * 28)


# what is set


def explanation(*flags: str) -> dict[str, Setting]:
    arguments = [*TOPICS, *flags]
    loaded = load(PrintConfigKafka, arguments, "connectors")
    return {one.name: one for one in explain(loaded, arguments, "connectors")}


def test_each_setting_is_told_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "connector.toml"
    file.write_text("pack = 1\ntries = 1\ngroup = 'file'\nfrom = 'latest'\n")
    monkeypatch.setenv("CONNECTOR_PACK", "2")
    monkeypatch.setenv("CONNECTOR_TRIES", "2")
    monkeypatch.setenv("CONNECTOR_WINDOW", "")
    found = explanation("--config", str(file), "--pack", "3")
    assert found["pack"] == ("pack", 3, "flag")
    assert found["tries"] == ("tries", 2, "environment")
    assert found["group"] == ("group", "file", "file")
    assert found["from"] == ("from", "latest", "file")
    assert found["window"] == ("window", 4096, "default")
    assert found["dead_letter_topic"] == ("dead_letter_topic", "images.dead", "default")
    assert found["config"].value == str(file)


def test_what_may_be_secret_is_hidden(tmp_path: Path) -> None:
    file = tmp_path / "connector.toml"
    file.write_text(
        "[kafka]\nfetch_max_wait_ms = 10\nsasl_plain_password = 'hunter2'\n"
        "ssl_context = {key = 'hunter2'}\n"
    )
    found = explanation("--config", str(file))
    assert found["kafka"].value == {
        "fetch_max_wait_ms": 10,
        "sasl_plain_password": "***",
        "ssl_context": "***",
    }
    assert "hunter2" not in "".join(render_settings(found.values(), as_json=True))


def test_a_setting_is_a_line_of_text_or_of_json() -> None:
    one = Setting("pack", 3, "flag")
    assert list(render_settings([one], as_json=False)) == ["pack = 3  # flag"]
    (line,) = render_settings([one], as_json=True)
    assert json.loads(line) == {"name": "pack", "value": 3, "origin": "flag"}


def test_the_surroundings_are_told() -> None:
    with Service(Script(body=predictions(1))).serving() as url:
        first, second, *_ = doctor.run_all(settings(url=url), [], thorough=True)
    assert first.text.startswith("Python 3.")
    assert second == Finding("settings", "ok", "valid")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--pack=3", "--max-dead-letter-ratio=0.25", "--log=json", "--tombstones=skip"],
        ["--group=a\\b\"c'd # e", "--instance=\x7f\x1b[2J\tä\U0001f600"],
        ["--metrics-port=0", "--url=https://host/p", "--from=latest", "--timeout=1e-3"],
    ],
)
def test_print_config_reads_back_as_a_file(flags: list[str], tmp_path: Path) -> None:
    settings = load(PrintConfigKafka, [*TOPICS, *flags], "connectors")
    lines = list(render_settings(explain(settings, [*TOPICS, *flags], "connectors"), as_json=False))
    assert all(line.isprintable() for line in lines)
    file = tmp_path / "connector.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    again = load(RunKafka, ["--config", str(file)], "connectors")
    made_anew = {"config"} | (set() if any("instance" in flag for flag in flags) else {"instance"})
    for name in set(RunKafka.model_fields) - made_anew:
        assert getattr(again, name) == getattr(settings, name), name


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({}, "kafka = {}  # file"),
        ({"retries": 3, "a b": True}, 'kafka = {"retries" = 3, "a b" = true}  # file'),
        ({"retries": 3, "sasl": "***"}, '# kafka = {"retries" = 3, "sasl" = "***"}  # file'),
    ],
)
def test_what_is_hidden_is_a_comment(table: dict[str, object], line: str) -> None:
    assert list(render_settings([Setting("kafka", table, "file")], as_json=False)) == [line]


def test_what_is_not_set_is_a_comment() -> None:
    unset, file = Setting("token_file", None, "default"), Setting("config", "a.toml", "flag")
    assert list(render_settings([unset, file], as_json=False)) == [
        "# token_file is not set  # default",
        '# config = "a.toml"  # flag',
    ]
