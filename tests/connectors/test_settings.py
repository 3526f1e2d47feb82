from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from kafka.cluster import collect_hosts

from connectors.__main__ import main
from connectors.brokers.kafka.settings import ListenKafka, ReplayKafka, RunKafka, SendKafka
from connectors.command_line import explain, load
from connectors.errors import Exit, Stop
from connectors.registry import KINDS
from connectors.settings import former_names, setting_name
from connectors.verbs import DeadLetters, Listen, LivePage, Send
from tests.certificates import Authority

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

TOPICS = ["--input-topic", "images", "--output-topic", "predictions"]
TWO = "input_topic and dead_letter_topic must be different topics"
THREE = "input_topic, output_topic and dead_letter_topic must be different topics"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CONNECTOR_"):
            monkeypatch.delenv(name)


def loaded(*flags: str) -> RunKafka:
    return load(RunKafka, [*TOPICS, *flags], "connectors")


def refusal(*flags: str, kind: type = RunKafka) -> str:
    with pytest.raises(Stop) as stop:
        load(kind, flags, "connectors")
    assert stop.value.code == Exit.USAGE
    assert "\n" not in str(stop.value)
    return str(stop.value)


def toml(folder: Path, text: str) -> str:
    file = folder / "connector.toml"
    file.write_text(text)
    return str(file)


def test_defaults_are_those_of_the_contract() -> None:
    settings = loaded()
    assert settings.dead_letter_topic == "images.dead"
    assert settings.url == "http://127.0.0.1:8080/predictions/fmnist"
    assert settings.instance.endswith(f"-{os.getpid()}")
    assert (settings.delivery, settings.start) == ("exactly-once", "earliest")
    assert (settings.drain_limit, settings.stuck_after, settings.status_every) == (25, 120, 10)
    assert settings.timeout == 20


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = toml(tmp_path, "pack = 1\ntries = 1\ngroup = 'file'\n")
    monkeypatch.setenv("CONNECTOR_PACK", "2")
    monkeypatch.setenv("CONNECTOR_TRIES", "2")
    settings = loaded("--config", file, "--pack", "3")
    assert (settings.pack, settings.tries, settings.group) == (3, 2, "file")
    assert settings.in_flight == 6


def test_the_file_can_be_named_by_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONNECTOR_CONFIG", toml(tmp_path, "pack = 7"))
    assert loaded().pack == 7


def test_every_source_calls_the_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded("--from", "latest").start == "latest"
    assert loaded("--config", toml(tmp_path, 'from = "latest"')).start == "latest"
    monkeypatch.setenv("CONNECTOR_FROM", "latest")
    assert loaded().start == "latest"


def test_the_kafka_table_holds_whatever_the_client_takes(tmp_path: Path) -> None:
    file = toml(tmp_path, "[kafka]\nfetch_max_wait_ms = 10\nclient_id = 'a'\n")
    assert loaded("--config", file).kafka == {"fetch_max_wait_ms": 10, "client_id": "a"}


def test_one_file_serves_all_verbs(tmp_path: Path) -> None:
    file = toml(tmp_path, "rate = 10\nidle_timeout = 3\npack = 5\n")
    assert loaded("--config", file).pack == 5
    assert load(ListenKafka, [*TOPICS, "--config", file], "connectors").idle_timeout == 3


def test_an_unknown_flag_names_the_nearest() -> None:
    assert "--in-flite is unknown; did you mean --in-flight?" in refusal(*TOPICS, "--in-flite=3")


def test_a_flag_is_not_abbreviated() -> None:
    assert "--input is unknown; did you mean --input-topic?" in refusal("--input", "images")


def test_an_unknown_variable_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTOR_PAK", "3")
    assert "CONNECTOR_PAK, which is unknown; did you mean CONNECTOR_PACK?" in refusal(*TOPICS)


def test_an_unknown_key_of_the_file_names_the_nearest(tmp_path: Path) -> None:
    file = toml(tmp_path, "input-topic = 'images'")
    assert "input-topic, which is unknown; did you mean input_topic?" in refusal("--config", file)


def test_a_far_off_word_has_no_nearest() -> None:
    assert "did you mean" not in refusal("--zzzzzzzz", *TOPICS)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--input-topic is required"),
        (["--input-topic", "images"], "--output-topic is required"),
        ([*TOPICS, "--pack", "0"], "--pack: input should be greater than or equal to 1"),
        ([*TOPICS, "--timeout", "x"], "--timeout: input should be a valid number"),
        ([*TOPICS, "--from", "now"], "--from: input should be 'earliest' or 'latest'"),
        ([*TOPICS, "--url", "127.0.0.1:8080"], "--url: it must begin with http://"),
        ([*TOPICS, "--url", "http://me:secret@host/"], "--url: it must begin with http://"),
        ([*TOPICS, "--pack"], "--pack: expected one argument"),
        ([*TOPICS, "--dead-letter-topic", "images"], THREE),
        ([*TOPICS, "--config", "missing.toml"], "missing.toml cannot be read as TOML"),
        ([*TOPICS, "--ssl-cafile", "missing.pem"], "--ssl-cafile: path does not point to a file"),
        ([*TOPICS, "--sasl-username", "me"], "security_protocol must be"),
        (
            [*TOPICS, "--sasl-username", "me", "--security-protocol", "SASL_SSL"],
            "sasl_mechanism, sasl_username and sasl_password_file go together",
        ),
    ],
)
def test_a_mistake_is_one_sentence(flags: list[str], sentence: str) -> None:
    assert sentence in refusal(*flags)


def test_a_mistake_never_shows_a_value_that_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTOR_KAFKA", "hunter2")
    assert "hunter2" not in refusal(*TOPICS)
    assert "hunter2" not in refusal(*TOPICS, "--url", "http://me:hunter2@host/")


def test_not_even_a_traceback_shows_it() -> None:
    with pytest.raises(ValueError, match="valid dictionary") as error:
        RunKafka(input_topic="a", output_topic="b", kafka="hunter2")  # type: ignore[arg-type] # on purpose
    assert "hunter2" not in str(error.value)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = toml(tmp_path, "pack = ")
    assert f"{file} cannot be read as TOML" in refusal(*TOPICS, "--config", file)


def test_the_password_comes_from_a_file_without_its_newline(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" hunter2 \r\n")
    login = ["--sasl-mechanism", "PLAIN", "--sasl-username", "me", "--sasl-password-file"]
    settings = loaded(*login, str(file), "--security-protocol", "SASL_SSL")
    assert settings.sasl_password() == " hunter2 "
    assert "hunter2" not in repr(settings)
    assert loaded().sasl_password() is None


def test_the_kafka_table_is_not_shown(tmp_path: Path) -> None:
    file = toml(tmp_path, "[kafka]\nsasl_plain_password = 'hunter2'\n")
    assert "hunter2" not in repr(loaded("--config", file))


def test_paths_and_flags_may_be_mixed() -> None:
    settings = load(SendKafka, ["a.png", *TOPICS[:2], "b.png", "--rate", "5"], "connectors")
    assert [str(path) for path in settings.paths] == ["a.png", "b.png"]
    assert settings.rate == 5


def test_there_must_be_one_thing_to_send() -> None:
    sentence = "name either paths or --test-set"
    assert sentence in refusal(*TOPICS, kind=SendKafka)
    assert sentence in refusal(*TOPICS, "a.png", "--test-set", kind=SendKafka)


def test_a_switch_can_be_turned_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONNECTOR_JSON", "true")
    assert load(ListenKafka, TOPICS, "connectors").json_lines
    assert not load(ListenKafka, [*TOPICS, "--no-json"], "connectors").json_lines


REPLAY = [*TOPICS[:2], "--name", "fix"]


def test_conditions_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [*REPLAY, "--where", "reason=failed", "--where", "header.a=b=c"]
    both = ["reason=failed", "header.a=b=c"]
    assert load(ReplayKafka, flags, "connectors").where == both
    file = toml(tmp_path, f"where = {both}")
    assert load(ReplayKafka, [*REPLAY, "--config", file], "connectors").where == both
    monkeypatch.setenv("CONNECTOR_WHERE", '["key=x"]')
    assert load(ReplayKafka, REPLAY, "connectors").where == ["key=x"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--name is required"),
        (["--name", "a b"], "--name: a name has 1 to 64 letters"),
        (["--name", "a", "--where", "offset=3"], "--where: a condition begins with id="),
        (["--name", "a", "--where", "key=" + 97 * "x"], "--where: string should have at most 100"),
        (["--name", "a", *9 * ["--where", "key=x"]], "--where: list should have at most 8"),
        (["--name", "a", "--limit", "0"], "--limit: input should be greater"),
        (["--name", "a", "--dead-letter-topic", "images"], TWO),
    ],
)
def test_a_replay_is_asked_for_in_order(flags: list[str], sentence: str) -> None:
    assert sentence in refusal(*TOPICS[:2], *flags, kind=ReplayKafka)


def test_metrics_are_served_when_a_port_is_named_and_nearby_only() -> None:
    assert (loaded().metrics_port, loaded().metrics_address) == (None, "127.0.0.1")
    assert loaded("--metrics-port", "9100").metrics_port == 9100
    assert "--metrics-port: input should be less than" in refusal(
        *TOPICS, "--metrics-port", "70000"
    )


FLAGS = {
    "kafka": ("--bootstrap-servers", "--dead-letter-topic", "--sasl-password-file"),
    "pubsub": ("--project", "--subscription", "--dead-letter-topic", "--create", "--ack-deadline"),
}


@pytest.mark.parametrize("command", KINDS)
def test_help_tells_the_flags_and_an_example(
    command: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load(KINDS[command], ["--help"], "python -m connectors")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    verb, broker = command
    for flag in FLAGS[broker]:
        assert flag in shown
    assert f"Example: python -m connectors {verb.removeprefix('run')}".rstrip() in shown
    assert "required" in shown


@pytest.mark.parametrize("flag", ["--pack", "--url", "--metrics-port", "--dead-letter-row"])
@pytest.mark.parametrize("command", KINDS, ids=" ".join)
def test_a_command_has_only_the_flags_that_it_uses(
    command: tuple[str, str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = KINDS[command]
    if issubclass(kind, Send | Listen | LivePage | DeadLetters):
        with pytest.raises(Stop, match=f"{flag} is a flag of other commands, and has no effect"):
            load(kind, [f"{flag}=7"], "connectors")
    with pytest.raises(SystemExit):
        load(kind, ["--help"], "connectors")
    is_daemon = not issubclass(kind, Send | Listen | LivePage | DeadLetters)
    assert (f" {flag} " in capsys.readouterr().out) == (is_daemon and flag != "--dead-letter-row")


@pytest.mark.parametrize("name", ["pack", "tries", "delivery", "dead_letter_topic"])
def test_variables_and_keys_of_other_commands_are_tolerated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"delivery": "at-least-once", "dead_letter_topic": "dead"}.get(name, "7")
    file = toml(tmp_path, f"{name} = '{value}'")
    listening = load(ListenKafka, ["--output-topic=out", f"--config={file}"], "connectors")
    monkeypatch.setenv(f"CONNECTOR_{name.upper()}", value)
    sending = load(SendKafka, ["--input-topic=in", "--test-set"], "connectors")
    assert [str(getattr(one, name)) for one in (listening, sending)] == [value, value]


def test_every_unused_setting_is_one() -> None:
    assert all(kind.unused <= set(kind.model_fields) for kind in KINDS.values())


def test_every_verb_is_there_for_every_broker() -> None:
    assert set(KINDS) == {(verb, broker) for verb, _ in KINDS for broker in FLAGS}


def test_a_secret_has_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        loaded("--help")
    shown = capsys.readouterr().out
    assert "--sasl-password " not in shown
    assert "--kafka" not in shown


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded().pack = 3


# names that changed


def test_every_setting_of_0_1_0_still_has_its_name_in_each_command() -> None:
    known = json.loads((Path(__file__).parent / "settings_of_0.1.0.json").read_text())
    assert {f"{verb} {broker}" for verb, broker in KINDS} >= set(known)
    for command, names in known.items():
        verb, _, broker = command.rpartition(" ")
        kind = KINDS[verb, broker]
        now = {setting_name(*field) for field in kind.model_fields.items()}
        assert set(names.split()) <= now | set(former_names(kind)), command


def test_every_flag_variable_and_key_of_a_kafka_daemon_of_0_1_0_still_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((Path(__file__).parent / "settings_of_0.1.0.json").read_text())
    renamed = former_names(RunKafka)
    values = {  # another value than the default, and a valid one
        setting_name(*field): different(str(setting_name(*field)), field[1], tmp_path)
        for field in RunKafka.model_fields.items()
    }
    names = [name for name in known["run kafka"].split() if name not in {"config", "kafka"}]
    assert len(names) > 30
    given = {name: values[renamed.get(name, name)] for name in names}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    file = toml(tmp_path, "".join(f"{name} = {json.dumps(v)}\n" for name, v in given.items()))
    by_flag = load(RunKafka, flags, "connectors")
    by_file = load(RunKafka, ["--config", file], "connectors")
    for name, value in given.items():
        monkeypatch.setenv(f"CONNECTOR_{name.upper()}", str(value))
    by_variable = load(RunKafka, [], "connectors")
    wanted = {renamed.get(name, name): value for name, value in given.items()}
    for found in (by_flag, by_file, by_variable):
        told = {setting_name(*f): getattr(found, f[0]) for f in RunKafka.model_fields.items()}
        assert {name: str(told[name]) for name in wanted} == {n: str(v) for n, v in wanted.items()}


def different(name: str, field: FieldInfo, folder: Path) -> str | float:
    """A valid value that is not the default, as TOML has it."""
    special: dict[str, str | float] = {
        "url": "http://localhost:1/p",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "delivery": "at-least-once",
        "from": "latest",
        "log": "json",
        "tombstones": "skip",
        "max_dead_letter_ratio": 0.25,
        "metrics_port": 9100,
    }
    if name in special:
        return special[name]
    if name.startswith("ssl_"):
        file = folder / "both.pem"
        if not file.exists():
            file.write_text(Authority.make(folder, "ca").sign("both").both)
        return str(file)
    if name.endswith("file"):
        path = folder / name
        path.touch()
        return str(path)
    if isinstance(field.default, float):
        return field.default + 1.0
    return field.default + 1 if isinstance(field.default, int) else f"another-{name}"


FORMER = [
    ("dead_letter_row", "max_consecutive_dead_letters", 7),
    ("dead_letter_share", "max_dead_letter_ratio", 0.25),
]


def give(
    source: str, names: list[str], value: float, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Give a value to each name in one source; return the flags that belong to it."""
    if source == "flag":
        return [f"--{name.replace('_', '-')}={value}" for name in names]
    if source == "file":
        return ["--config", toml(folder, "".join(f"{name} = {value}\n" for name in names))]
    for name in names:
        monkeypatch.setenv(f"CONNECTOR_{name.upper()}", str(value))
    return []


@pytest.mark.parametrize(("former", "name", "value"), FORMER)
@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_a_former_name_works_and_warns_once(
    former: str,
    name: str,
    value: float,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = loaded(*give(source, [former], value, tmp_path, monkeypatch))
    assert getattr(settings, name) == value
    (said,) = caplog.messages
    assert former.upper().replace("_", "-") in said.upper().replace("_", "-")
    assert "now called" in said


@pytest.mark.parametrize(("former", "name", "value"), FORMER)
@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_a_former_name_beside_the_new_one_is_refused(
    former: str,
    name: str,
    value: float,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = give(source, [former, name], value, tmp_path, monkeypatch)
    assert "give one of them" in refusal(*TOPICS, *flags)


def test_a_flag_by_its_new_name_beats_a_variable_by_its_former_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONNECTOR_DEAD_LETTER_ROW", "5")
    assert loaded("--max-consecutive-dead-letters", "6").max_consecutive_dead_letters == 6
    assert loaded().max_consecutive_dead_letters == 5


def test_former_names_are_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(RunKafka, ["--help"], "connectors")
    shown = capsys.readouterr().out
    assert "--max-consecutive-dead-letters" in shown
    assert "--dead-letter-row" not in shown


def test_print_config_warns_once_of_a_former_name(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["print-config", "kafka", *TOPICS, "--dead-letter-row", "7"]) == 0
    assert len(caplog.messages) == 1
    assert "max_consecutive_dead_letters = 7  # flag" in capsys.readouterr().out


def test_a_variable_in_lower_case_names_the_file_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("connector_config", toml(tmp_path, "pakc = 1\n"))
    assert "pakc, which is unknown; did you mean pack?" in refusal(*TOPICS)


def test_a_former_name_is_no_advice_for_a_mistyped_flag() -> None:
    assert "--dead-letter-row" not in refusal(*TOPICS, "--dead-letter-rw", "7")


# What others put into the environment


def service(
    name: str, host: str, port: int, protocol: str = "tcp", title: str = ""
) -> list[tuple[str, str]]:
    """The variables that Kubernetes makes of a Service of one port."""
    prefix, url_host = name.upper().replace("-", "_"), f"[{host}]" if ":" in host else host
    url, one = f"{protocol}://{url_host}:{port}", f"{prefix}_PORT_{port}_{protocol.upper()}"
    variables = {
        f"{prefix}_SERVICE_HOST": host,
        f"{prefix}_SERVICE_PORT": str(port),
        f"{prefix}_PORT": url,
        one: url,
        f"{one}_PROTO": protocol,
        f"{one}_PORT": str(port),
        f"{one}_ADDR": host,
    }
    if title:
        variables[f"{prefix}_SERVICE_PORT_{title.upper().replace('-', '_')}"] = str(port)
    return list(variables.items())


SERVICES = [
    service("connector", "10.0.48.109", 9100),
    service("connector", "10.0.48.109", 9100, title="http-metrics"),
    service("connector", "fd00:10:96::1f", 80),
    service("connector", "10.0.0.1", 53, "udp"),
    service("connector", "10.0.0.1", 36412, "sctp"),
    service("connector-metrics", "10.0.48.109", 9100, title="metrics"),
    service("connector-a-b", "10.0.48.109", 65535),
]


@pytest.mark.parametrize("variables", SERVICES)
def test_what_kubernetes_makes_of_a_service_is_passed_over(
    variables: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = loaded()
    for name, text in variables:
        monkeypatch.setenv(name, text)
    settings = loaded()
    assert settings.metrics_port is None
    assert settings.model_dump(exclude={"instance"}) == before.model_dump(exclude={"instance"})
    shown = [one for one in explain(settings, TOPICS, "connectors") if one.origin == "environment"]
    assert shown == []


@pytest.mark.parametrize("variables", SERVICES)
def test_a_variable_of_ours_beside_them_still_counts(
    variables: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in [*variables, ("CONNECTOR_PACK", "7")]:
        monkeypatch.setenv(name, text)
    assert loaded().pack == 7


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("CONNECTOR_PORT", "9100"),
        ("CONNECTOR_PORTS", "tcp://10.0.48.109:9100"),
        ("CONNECTOR_SERVICE_HOST", "my-host"),
        ("CONNECTOR_SERVICE_PORT", "tcp"),
        ("CONNECTOR_SERVICE_URL", "tcp://10.0.48.109:9100"),
        ("CONNECTOR_PORT_9100_TCP", "9100"),
        ("CONNECTOR_PORT_9100_TCP_PROTO", "http"),
        ("CONNECTOR_METRICS_PORTT", "9100"),
    ],
)
def test_a_mistake_that_only_looks_like_the_platforms_is_still_refused(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    assert f"the environment sets {name}, which is unknown" in refusal(*TOPICS)


def test_a_port_for_metrics_from_the_environment_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONNECTOR_METRICS_PORT", "9100")
    assert loaded().metrics_port == 9100


NO_SERVERS = [
    *("localhost:abc", "localhost:0", "localhost:70000", "localhost:", ":9092", "", ","),
    *("localhost:-1", "localhost:9092,", "a:1,,b:2", "a:1 b:2", "[::1]:x", "[::1", "[]:9092"),
    *("localhost:\N{ARABIC-INDIC DIGIT THREE}", "localhost:\N{FULLWIDTH DIGIT NINE}092", "a:1e3"),
    *("me:hunter2@host:9092", "a:1:2", "kafka://", "localhost:9092/path", "[::1]9092"),
]


@pytest.mark.parametrize("servers", NO_SERVERS)
@pytest.mark.parametrize(
    "command", ["check", "doctor", "send", "listen", "watch", "print-config", "run"]
)
def test_servers_that_cannot_be_are_one_sentence(servers: str, command: str) -> None:
    kind = KINDS[command, "kafka"]
    topics = {"send": [*TOPICS[:2], "a.png"], "listen": TOPICS[2:]}.get(command, TOPICS)
    sentence = refusal(*topics, f"--bootstrap-servers={servers}", kind=kind)
    assert sentence.startswith("--bootstrap-servers: ")
    assert "host:port with a port from 1 to 65535" in sentence
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    "servers",
    [
        *("localhost:9092", "localhost", "kafka-1.example.com:1,kafka_2:65535", "10.0.0.1:9092"),
        *("[::1]:9092", "[::1]", "::1", "[fe80::1%eth0]:9092", "a:1, b:2", "PLAINTEXT://a:9092"),
    ],
)
def test_servers_that_can_be_are_taken_as_the_library_takes_them(servers: str) -> None:
    assert loaded(f"--bootstrap-servers={servers}").bootstrap_servers == servers
    assert all(1 <= port <= 65_535 for _, port, _ in collect_hosts(servers, randomize=False))


@pytest.mark.parametrize(
    "flags",
    [
        *(("--url", url) for url in ("localhost:8080", "ftp://a/", "http://", "", "http://a b/")),
        *(("--url", url) for url in ("http:/a", "http://me@a/", "HTTP//a", "//a/b")),
        *(("--where", text) for text in ("raeson=failed", "Reason=x", "header.=x", "failed", "=")),
        *(("--where", text) for text in ("header=x", "keys=a", "ids=1", "reason", "where=1")),
        *(("--name", name) for name in ("", "a b", "a/b", "x" * 65, "ä", "a\n")),
    ],
)
def test_what_is_refused_is_told_in_a_sentence_without_a_pattern(flags: tuple[str, str]) -> None:
    given = f"{flags[0]}={flags[1]}"
    base = ["--input-topic", "images", *([] if flags[0] == "--name" else ["--name", "a"])]
    if flags[0] == "--url":
        sentence = refusal(*TOPICS, given)
    else:
        sentence = refusal(*base, given, kind=ReplayKafka)
    assert sentence.startswith(f"{flags[0]}: ")
    assert "pattern" not in sentence
    assert not {"^", "[", "$", "{", "\\"} & set(sentence)


@pytest.mark.parametrize(
    ("condition", "meant"), [("raeson=failed", "reason"), ("reasn=x", "reason"), ("kye=a", "key")]
)
def test_a_mistyped_condition_names_the_nearest(condition: str, meant: str) -> None:
    flags = ["--input-topic", "images", "--name", "a", "--where", condition]
    assert f"did you mean {meant}=?" in refusal(*flags, kind=ReplayKafka)


def test_no_setting_is_checked_by_a_pattern_alone() -> None:
    for kind in KINDS.values():
        for name, field in kind.model_fields.items():
            assert not any(getattr(one, "pattern", None) for one in field.metadata), name
