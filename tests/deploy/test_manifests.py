"""What deploy/ describes: by the schemas, by rules between objects, and with mistakes planted."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from connectors import command_line
from connectors.brokers.kafka.settings import RunKafka
from connectors.brokers.pubsub.settings import RunPubSub
from connectors.settings import PREFIX
from tests.conftest import missing
from tests.connectors.test_client import Script, Service, predictions, unused_port
from tests.deploy.rules import (
    Object,
    Objects,
    find_connector,
    find_mistakes,
    find_pod,
    list_containers,
    read_toml,
    select,
)
from tools import ready

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from connectors.verbs import Daemon

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = ROOT / "build" / "deploy-venv"
VERSIONS = ["1.29", "1.37"]
"""The first Kubernetes that has native sidecars by itself, and the newest with schemas."""

OVERLAYS: Mapping[str, type[Daemon]] = {"kafka": RunKafka, "pubsub": RunPubSub}


@pytest.fixture(scope="module")
def rendered() -> dict[str, Objects]:
    """The objects of each overlay, as `kubectl apply -k` would send them."""
    if not (TOOLS / ".requirements").exists():
        missing("build/deploy-venv is not there: run `make deploy-venv`")
    return {overlay: render(overlay) for overlay in OVERLAYS}


def render(overlay: str) -> Objects:
    command = [str(TOOLS / "bin" / "kubectl"), "kustomize", str(DEPLOY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


def find_faults(objects: Objects) -> list[str]:
    """Ask the schemas of Kubernetes and of the operators."""
    crds = TOOLS / "crds"
    if not any(crds.iterdir()):
        missing("the definitions of operators are not there: install go, then `make deploy-venv`")
    program = [str(TOOLS / "bin" / "python"), str(Path(__file__).with_name("strict.py"))]
    done = subprocess.run(
        [*program, str(crds), *VERSIONS],
        input=json.dumps(objects),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split("\n")


def test_each_object_is_valid_for_the_oldest_and_the_newest_kubernetes_and_each_typo_is_none(
    rendered: dict[str, Objects],
) -> None:
    every = [one for objects in rendered.values() for one in objects]
    kinds = {one["kind"] for one in every}
    assert {"Deployment", "ScaledObject", "TriggerAuthentication", "PodMonitor"} <= kinds
    planted = []
    for one in every:  # in a copy of each object a key more
        spoiled = deepcopy(one)
        spoiled["metadata"]["name"] = "spoiled"
        target = spoiled.get("spec", spoiled)
        target["replicsa"] = 1
        planted.append(spoiled)
    faults = [line for line in find_faults([*every, *planted]) if line]
    assert [line for line in faults if "/spoiled: " not in line] == []
    assert len(faults) == len(every)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_between_objects_is_broken(overlay: str, rendered: dict[str, Objects]) -> None:
    assert find_mistakes(rendered[overlay]) == []


def in_toml(old: str, new: str) -> Callable[[Objects], None]:
    def plant(objects: Objects) -> None:
        (found,) = select(objects, "ConfigMap")
        assert old in read_toml(objects)
        found["data"]["connector.toml"] = read_toml(objects).replace(old, new)

    return plant


def in_object(kind: str, path: str, value: object) -> Callable[[Objects], None]:
    """Put a value where a path of keys and indices leads to; it must be there already."""

    def plant(objects: Objects) -> None:
        (found,) = select(objects, kind)
        *way, last = (int(key) if key.isdigit() else key for key in path.split("/"))
        place: Any = found
        for key in way:
            place = place[key]
        assert place[last] != value
        place[last] = value

    return plant


def in_pod(path: str, value: object) -> Callable[[Objects], None]:
    return in_object("Deployment", f"spec/template/spec/{path}", value)


def with_host_network(objects: Objects) -> None:
    find_pod(objects)["hostNetwork"] = True


def with_host_path(objects: Objects) -> None:
    find_pod(objects)["volumes"][0] = {"name": "run", "hostPath": {"path": "/"}}


def with_replicas(objects: Objects) -> None:
    (deployment,) = select(objects, "Deployment")
    deployment["spec"]["replicas"] = 2


OTHERS = {"matchLabels": {"app.kubernetes.io/name": "other"}}
SERVER, CONNECTOR = "initContainers/0", "containers/0"
MISTAKES: dict[str, tuple[Callable[[Objects], None], str]] = {
    "grace": (in_pod("terminationGracePeriodSeconds", 30), "grace period"),
    "drain": (in_toml("drain_limit = 25", "drain_limit = 60"), "grace period"),
    "probe": (in_pod(f"{CONNECTOR}/livenessProbe/timeoutSeconds", 1), "livenessProbe has less"),
    "exec": (in_pod(f"{SERVER}/startupProbe/timeoutSeconds", 5), "startupProbe has less"),
    "port": (in_pod(f"{CONNECTOR}/ports/0/containerPort", 9000), "metrics is not where"),
    "address": (in_toml("0.0.0.0", "127.0.0.1"), "metrics is not where"),  # noqa: S104
    "probe's port": (in_pod(f"{CONNECTOR}/livenessProbe/httpGet/port", "metric"), "port metric"),
    "policy's port": (in_object("NetworkPolicy", "spec/ingress/0/ports/0/port", "web"), "port web"),
    "monitor": (in_object("PodMonitor", "spec/podMetricsEndpoints/0/port", "web"), "port web"),
    "url": (in_toml(":8080/", ":8088/"), "listens elsewhere"),
    "selector": (in_object("Deployment", "spec/selector", OTHERS), "Deployment selects"),
    "budget": (in_object("PodDisruptionBudget", "spec/selector", OTHERS), "Budget selects"),
    "policy": (in_object("NetworkPolicy", "spec/podSelector", OTHERS), "Policy selects"),
    "pods": (in_object("PodMonitor", "spec/selector", OTHERS), "Monitor selects"),
    "spread": (in_pod("topologySpreadConstraints/0/labelSelector", OTHERS), "spread 0 selects"),
    "account": (in_pod("serviceAccountName", "default"), "ServiceAccount"),
    "volume": (in_pod("volumes/0/name", "ran"), "a volume is mounted"),
    "map": (in_pod("volumes/1/configMap/name", "fmnist-connector"), "file of --config"),
    "file": (in_pod(f"{CONNECTOR}/args/2", "/etc/fmnist/connectors.toml"), "file of --config"),
    "secret": (in_pod(f"{CONNECTOR}/volumeMounts/1/mountPath", "/run/kafka"), "nothing is mounted"),
    "key": (in_toml("group = ", "groups = "), "unknown key groups"),
    "remark": (in_toml("# ssl_cafile", "# ssl_ca_file"), "unknown key ssl_ca_file"),
    "exit": (in_toml('"park"', '"exit"'), "start a daemon again"),
    "root": (in_pod("securityContext/runAsNonRoot", value=False), "as root"),
    "seccomp": (in_pod("securityContext/seccompProfile/type", "Unconfined"), "seccomp"),
    "network": (with_host_network, "hostNetwork"),
    "path": (with_host_path, "hostPath"),
    "capability": (
        in_pod(f"{SERVER}/securityContext/capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}),
        "server may do more",
    ),
    "writable": (
        in_pod(f"{CONNECTOR}/securityContext/readOnlyRootFilesystem", value=False),
        "connector may do more",
    ),
    "memory": (in_pod(f"{CONNECTOR}/resources/limits", {}), "no limit of memory"),
    "links": (in_pod("enableServiceLinks", value=True), "told of the cluster"),
    "sidecar": (in_pod(f"{SERVER}/restartPolicy", "Never"), "no native sidecar"),
    "ping": (
        in_pod(f"{SERVER}/livenessProbe/exec/command", ["curl", "http://127.0.0.1:8080/ping"]),
        "asks for no prediction",
    ),
    "kafka": (in_object("NetworkPolicy", "spec/egress/1/ports", []), "port 9092"),
    "dns": (in_object("NetworkPolicy", "spec/egress/0/ports", []), "names"),
    "target": (in_object("ScaledObject", "spec/scaleTargetRef/name", "other"), "not there"),
    "group": (
        in_object("ScaledObject", "spec/triggers/0/metadata/consumerGroup", "other"),
        "consumerGroup",
    ),
    "topic": (in_toml('input_topic = "images"', 'input_topic = "photos"'), "KEDA's topic"),
    "replicas": (with_replicas, "how many pods"),
    "service": (in_toml("http://127.0.0.1:", "http://fmnist:"), "another server"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_planted_mistake_is_noticed(mistake: str, rendered: dict[str, Objects]) -> None:
    objects = deepcopy(rendered["kafka"])
    plant, complaint = MISTAKES[mistake]
    plant(objects)
    assert [found for found in find_mistakes(objects) if complaint in found]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_daemon_of_each_overlay_loads_its_settings(
    overlay: str, rendered: dict[str, Objects], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    file = tmp_path / "connector.toml"
    file.write_text(read_toml(rendered[overlay]))
    settings = command_line.load(OVERLAYS[overlay], ["--config", str(file)], "connectors")
    given = tomllib.loads(file.read_text())
    assert {name: getattr(settings, name) for name in given} == given
    assert find_connector(rendered[overlay])["args"][0] == overlay


def probe_command(objects: Objects) -> list[str]:
    (server,) = (one for one in list_containers(objects) if one["name"] == "server")
    program, *rest = server["livenessProbe"]["exec"]["command"]
    assert program == "python3"
    return [sys.executable, *rest]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Script(body=json.dumps({"class": 9, "label": "Ankle boot"}).encode()), 0),
        (Script(503, b'{"code": 503, "type": "ServiceUnavailableException"}'), 1),
        (Script(500, b"{}"), 1),
        (Script(200, b'{"status": "Healthy"}'), 1),
        (Script(200, b"no json"), 1),
        (Script(200, predictions(1)), 1),
    ],
)
def test_the_command_of_the_probes_is_red_for_all_but_a_prediction(
    answer: Script, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Service(answer).serving() as url:
        assert ready.main([url]) == code
    lines = capsys.readouterr().err.splitlines()  # the server may complain of a closed connection
    assert [line[:7] for line in lines if line.startswith("ready:")] == ["ready: "] * code


def test_the_command_of_the_probes_runs_and_is_red_where_nobody_listens(
    rendered: dict[str, Objects],
) -> None:
    command = [*probe_command(rendered["kafka"]), f"http://127.0.0.1:{unused_port()}/"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


# one host, and the images


def load_compose() -> dict[str, Object]:
    services: dict[str, Object] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def test_on_one_host_each_container_may_do_as_little_as_in_a_pod() -> None:
    for name, service in load_compose().items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] == "10001:10001", name
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports), name


def test_on_one_host_connector_and_server_share_loopback_and_times_fit() -> None:
    services = load_compose()
    given = tomllib.loads((DEPLOY / "base" / "connector.toml").read_text())
    assert {services[name]["network_mode"] for name in ("server", "connector")} == {
        "service:network"
    }
    assert services["network"]["ports"] == [f"127.0.0.1:{given['metrics_port']}:9100"]
    assert int(services["connector"]["stop_grace_period"].rstrip("s")) > given["drain_limit"] + 5
    (mount,) = services["connector"]["volumes"]
    host, inside, _ = mount.split(":")
    assert (DEPLOY / host).is_file()
    assert inside in services["connector"]["command"]
    assert services["server"]["healthcheck"]["test"][1:] == ["python3", "-m", "tools.ready"]


@pytest.mark.parametrize("name", ["connector", "server"])
def test_what_is_large_and_in_no_image_is_not_sent_to_the_builder(name: str) -> None:
    ignored = set((ROOT / ".dockerignore").read_text().split())
    text = (DEPLOY / "images" / f"{name}.Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert ignored >= {".git", ".venv", "build", "data", "runs"}
    assert not ignored & {source.partition("/")[0] for source in " ".join(copied).split()}


@pytest.mark.parametrize("name", ["connector", "server"])
def test_each_image_copies_what_is_there_and_runs_as_nobody(name: str) -> None:
    text = (DEPLOY / "images" / f"{name}.Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert copied
    for source in " ".join(copied).split():
        for kind in ("kafka", "pubsub"):
            path = source.replace("${BROKER}", kind).replace("${ARCHIVE}*", "model_store")
            assert (ROOT / path).exists(), source
    assert "\nUSER 10001:10001\n" in text
    assert re.search(r'^ENTRYPOINT \["', text, re.MULTILINE)
