"""What `make test-images` plays: the rendered pod, but for what podman cannot have."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest

from tests.conftest import missing
from tests.deploy.rules import find_pod, list_containers, read_toml, select
from tests.deploy.test_manifests import TOOLS, render
from tests.images.pod import LEFT_OUT, find_probe, find_server, make_playable, replace_settings

if TYPE_CHECKING:
    from tests.deploy.rules import Object, Objects

SETTINGS: dict[str, str | int] = {"bootstrap_servers": "127.0.0.1:9", "metrics_port": 9123}


@pytest.fixture(scope="module")
def rendered() -> Objects:
    if not (TOOLS / ".requirements").exists():
        missing("build/deploy-venv is not there: run `make deploy-venv`")
    return render("kafka")


def keep(container: Object) -> Object:
    """Return what must be the same: all but probes, ports and the secret that may be missing."""
    mounts = [one for one in container["volumeMounts"] if one["name"] != "credentials"]
    kept = {key: value for key, value in container.items() if key not in LEFT_OUT}
    return kept | {"volumeMounts": mounts}


def test_the_pod_that_podman_plays_is_the_rendered_one_in_all_that_podman_can(
    rendered: Objects,
) -> None:
    (played,) = select(make_playable(rendered, SETTINGS), "Pod")
    pod, spec = find_pod(rendered), played["spec"]
    assert [keep(one) for one in spec["containers"]] == [
        keep(one) for one in list_containers(rendered)
    ]
    own = {"initContainers", "containers", "volumes", "hostNetwork"}
    assert {key: value for key, value in spec.items() if key not in own} == {
        key: value for key, value in pod.items() if key not in own
    }
    assert [one for one in pod["volumes"] if one not in spec["volumes"]] == [
        one for one in pod["volumes"] if one["name"] == "credentials"
    ]


def test_the_settings_of_the_played_pod_are_the_rendered_ones_and_those_of_the_place(
    rendered: Objects,
) -> None:
    before, after = (
        tomllib.loads(read_toml(one)) for one in (rendered, make_playable(rendered, SETTINGS))
    )
    assert after == before | SETTINGS
    with pytest.raises(KeyError, match="bootstrap_server"):
        replace_settings(read_toml(rendered), {"bootstrap_server": "127.0.0.1:9"})


def test_the_sick_server_is_asked_by_the_command_that_both_probes_of_the_manifest_name(
    rendered: Objects,
) -> None:
    server = find_server(rendered)
    asked = {tuple(server[probe]["exec"]["command"]) for probe in ("startupProbe", "livenessProbe")}
    assert asked == {tuple(find_probe(rendered))}
