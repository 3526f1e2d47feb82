"""Rules that hold between objects of deploy/, and that no schema knows."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from connectors import daemon, page_server, registry
from tools import ready
from tools.servers.process import ROOT
from tools.servers.torchserve import read_properties

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Object = dict[str, Any]
Objects = list[Object]

END_OF_SERVER_S = 5
"""Seconds that are left to TorchServe when the connector has drained."""
PLAIN_VOLUMES = {"name", "configMap", "emptyDir", "secret", "projected", "downwardAPI"}


def find_mistakes(objects: Objects) -> list[str]:
    """Return all that is broken, a sentence each."""
    return [found for rule in RULES for found in rule(objects)]


def select(objects: Objects, kind: str) -> Objects:
    return [one for one in objects if one["kind"] == kind]


def find_pod(objects: Objects) -> Object:
    (deployment,) = select(objects, "Deployment")
    pod: Object = deployment["spec"]["template"]["spec"]
    return pod


def list_containers(objects: Objects) -> Objects:
    pod = find_pod(objects)
    return [*pod.get("initContainers", ()), *pod["containers"]]


def find_connector(objects: Objects) -> Object:
    return next(one for one in find_pod(objects)["containers"] if one["name"] == "connector")


def read_toml(objects: Objects) -> str:
    (text,) = (one["data"]["connector.toml"] for one in select(objects, "ConfigMap"))
    return str(text)


def list_probes(container: Object) -> Mapping[str, Object]:
    return {name: probe for name, probe in container.items() if name.endswith("Probe")}


def check_times(objects: Objects) -> Iterator[str]:
    drain = tomllib.loads(read_toml(objects))["drain_limit"]
    if find_pod(objects)["terminationGracePeriodSeconds"] < drain + daemon.MARGIN + END_OF_SERVER_S:
        yield "the grace period is shorter than the drain, its margin and the end of the server"
    for container in list_containers(objects):
        for name, probe in list_probes(container).items():
            least = max(page_server.CONNECTION_TIMEOUT, daemon.READINESS_TIMEOUT)
            if probe.get("timeoutSeconds", 1) <= (ready.TIMEOUT if "exec" in probe else least):
                yield f"{container['name']}'s {name} has less patience than who answers it"


def check_ports(objects: Objects) -> Iterator[str]:
    given = tomllib.loads(read_toml(objects))
    ports = {one["name"]: one["containerPort"] for one in find_connector(objects)["ports"]}
    if ports.get("metrics") != given["metrics_port"] or given["metrics_address"] != "0.0.0.0":  # noqa: S104
        yield "the port metrics is not where connector.toml serves metrics"
    asked = [
        probe["httpGet"]["port"]
        for probe in list_probes(find_connector(objects)).values()
        if "httpGet" in probe
    ]
    for policy in select(objects, "NetworkPolicy"):
        asked += [port["port"] for way in policy["spec"]["ingress"] for port in way["ports"]]
    for monitor in select(objects, "PodMonitor"):
        asked += [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]]
    yield from (f"no container has the port {port}" for port in asked if port not in ports)
    inference = read_properties(ROOT / "config.properties")["inference_address"]
    if not given["url"].startswith(f"{inference}/predictions/") or not ready.URL.startswith(
        inference
    ):
        yield "TorchServe listens elsewhere than where it is asked"


def check_selectors(objects: Objects) -> Iterator[str]:
    (deployment,) = select(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = {"Deployment": deployment["spec"]["selector"]}
    selectors |= {
        one["kind"]: one["spec"].get("selector") or one["spec"].get("podSelector")
        for one in objects
        if one["kind"] in ("PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    }
    spread = find_pod(objects)["topologySpreadConstraints"]
    selectors |= {f"spread {number}": one["labelSelector"] for number, one in enumerate(spread)}
    for name, selector in selectors.items():
        if not selector or not selector["matchLabels"].items() <= labels.items():
            yield f"{name} selects other pods"
    accounts = [one["metadata"]["name"] for one in select(objects, "ServiceAccount")]
    if find_pod(objects)["serviceAccountName"] not in accounts:
        yield "the pod's ServiceAccount is not there"


def check_files(objects: Objects) -> Iterator[str]:
    volumes = {one["name"]: one for one in find_pod(objects)["volumes"]}
    mounts = [one for each in list_containers(objects) for one in each["volumeMounts"]]
    if {one["name"] for one in mounts} != volumes.keys():
        yield "a volume is mounted that is not there, or is there and not mounted"
    maps = {one["metadata"]["name"]: one["data"] for one in select(objects, "ConfigMap")}
    names = [one["configMap"]["name"] for one in volumes.values() if "configMap" in one]
    files = {name for one in names for name in maps.get(one, ())}
    arguments = find_connector(objects)["args"]
    folder, _, file = arguments[arguments.index("--config") + 1].rpartition("/")
    places = {one["mountPath"]: one["name"] for one in find_connector(objects)["volumeMounts"]}
    if file not in files or places.get(folder) != "config":
        yield "the file of --config is not in the ConfigMap that is mounted there"
    named = re.findall(r'^#? ?\w+file = "(.+)/[^/]+"', read_toml(objects), re.MULTILINE)
    yield from (f"nothing is mounted at {one}" for one in {*named} - places.keys())


def check_settings(objects: Objects) -> Iterator[str]:
    text = re.sub(r"^# (\w+ = )", r"\1", read_toml(objects), flags=re.MULTILINE)
    unknown = tomllib.loads(text).keys() - registry.list_settings()
    yield from (f"connector.toml has the unknown key {key}" for key in sorted(unknown))
    if tomllib.loads(text).get("when_given_up") != "park":
        yield "a Deployment would start a daemon again that has given up"


def check_security(objects: Objects) -> Iterator[str]:
    """Pod Security "restricted", and a root file system that nobody writes to."""
    pod = find_pod(objects)
    yield from (
        f"the pod has {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)
    )
    own = pod["securityContext"]
    if not own.get("runAsNonRoot") or not own.get("runAsUser"):
        yield "the pod may run as root"
    if own.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    for volume in pod["volumes"]:
        yield from (f"a volume is of the type {kind}" for kind in volume.keys() - PLAIN_VOLUMES)
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for container in list_containers(objects):
        if container.get("securityContext") != wanted:
            yield f"{container['name']} may do more than it needs"
        if "memory" not in container["resources"]["limits"]:
            yield f"{container['name']} has no limit of memory"
    if pod.get("automountServiceAccountToken", True) or pod.get("enableServiceLinks", True):
        yield "the pod is told of the cluster, and needs nothing of it"


def check_server(objects: Objects) -> Iterator[str]:
    (server,) = (one for one in list_containers(objects) if one["name"] == "server")
    if server not in find_pod(objects).get("initContainers", ()) or (
        server.get("restartPolicy") != "Always"
    ):
        yield "the server is no native sidecar: it would end before the drain"
    for name in ("startupProbe", "livenessProbe"):
        command = server.get(name, {}).get("exec", {}).get("command")
        if command != ["python3", "-m", "tools.ready"]:
            yield f"the server's {name} asks for no prediction"


def check_ways_out(objects: Objects) -> Iterator[str]:
    (policy,) = select(objects, "NetworkPolicy")
    ways = policy["spec"]["egress"]
    ports = {port["port"] for way in ways for port in way["ports"]}
    servers = tomllib.loads(read_toml(objects)).get("bootstrap_servers")
    needed = [443]
    if servers:
        needed = [int(server.rpartition(":")[2]) for server in servers.split(",")]
    yield from (f"port {port} of the broker is closed" for port in needed if port not in ports)
    if 53 not in ports:
        yield "names cannot be resolved"


def check_scaling(objects: Objects) -> Iterator[str]:
    given = tomllib.loads(read_toml(objects))
    (deployment,) = select(objects, "Deployment")
    for scaled in select(objects, "ScaledObject"):
        if scaled["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"]:
            yield "KEDA scales what is not there"
        if "replicas" in deployment["spec"]:
            yield "both KEDA and the Deployment say how many pods there are"
        for trigger in scaled["spec"]["triggers"]:
            yield from _compare(TRIGGERS[trigger["type"]], trigger["metadata"], given)


TRIGGERS = {
    "kafka": {
        "bootstrapServers": "{bootstrap_servers}",
        "consumerGroup": "{group}",
        "topic": "{input_topic}",
    },
    "gcp-pubsub": {"subscriptionName": "projects/{project}/subscriptions/{subscription}"},
}
"""What a trigger of KEDA must have of connector.toml."""


def _compare(
    wanted: Mapping[str, str], found: Mapping[str, str], given: Mapping[str, Any]
) -> Iterator[str]:
    for key, form in wanted.items():
        if found.get(key) != form.format_map(defaultdict(str, given)):
            yield f"KEDA's {key} is not that of connector.toml"


def check_loopback(objects: Objects) -> Iterator[str]:
    if urlsplit(tomllib.loads(read_toml(objects))["url"]).hostname != "127.0.0.1":
        yield "the connector asks another server than that of its pod"


RULES: Sequence[Any] = (
    check_times,
    check_ports,
    check_selectors,
    check_files,
    check_settings,
    check_security,
    check_server,
    check_ways_out,
    check_scaling,
    check_loopback,
)
