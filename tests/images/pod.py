"""The rendered pod as podman can play it: what a cluster has and podman has not is left out."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING

import yaml

from tests.deploy.rules import list_containers, select

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.deploy.rules import Object, Objects


POD = "fmnist"
"""The name of the pod; its containers are called after it."""


LEFT_OUT = ("restartPolicy", "startupProbe", "livenessProbe", "readinessProbe", "ports")
"""What a container of a played pod cannot have; the pod's own restartPolicy holds."""


def make_playable(rendered: Objects, settings: Mapping[str, str | int]) -> Objects:
    """Return the ConfigMap and one pod of the Deployment, with settings of connector.toml.

    podman knows no native sidecars: they become the first containers. Its probes need systemd: the
    caller asks them. It knows no secret that may be missing. Kafka is on the host's loopback, so
    the pod is in the host's network, which needs no ports.
    """
    maps = deepcopy(select(rendered, "ConfigMap"))
    for one in maps:
        text = one["data"]["connector.toml"]
        one["data"]["connector.toml"] = replace_settings(text, settings)
    (deployment,) = deepcopy(select(rendered, "Deployment"))
    template = deployment["spec"]["template"]
    pod = template["spec"]
    optional = [one["name"] for one in pod["volumes"] if one.get("secret", {}).get("optional")]
    pod["volumes"] = [one for one in pod["volumes"] if one["name"] not in optional]
    pod["hostNetwork"] = True
    pod["containers"] = [*pod.pop("initContainers", ()), *pod["containers"]]
    for container in pod["containers"]:
        mounts = container["volumeMounts"]
        container["volumeMounts"] = [one for one in mounts if one["name"] not in optional]
        for key in LEFT_OUT:
            container.pop(key, None)
    metadata = {"name": POD, "labels": template["metadata"]["labels"]}
    return [*maps, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}]


def replace_settings(toml: str, settings: Mapping[str, str | int]) -> str:
    """Return the file with other values; raises KeyError for a key that has no line."""
    for key, value in settings.items():
        given = f'"{value}"' if isinstance(value, str) else str(value)
        toml, found = re.subn(rf"^{key} = .*$", f"{key} = {given}", toml, flags=re.MULTILINE)
        if not found:
            raise KeyError(key)
    return toml


def find_probe(rendered: Objects) -> list[str]:
    """Return the command by which the rendered pod asks its server."""
    command: list[str] = find_server(rendered)["livenessProbe"]["exec"]["command"]
    return command


def find_server(objects: Objects) -> Object:
    """Return the server's container."""
    return next(one for one in list_containers(objects) if one["name"] == "server")


def write_yaml(objects: Objects) -> str:
    """Return the objects as one file for `podman kube play`."""
    return yaml.safe_dump_all(objects, sort_keys=False)
