"""What is asked of the images: the server alone, the rendered pod, the other format."""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from tests.chaos.brokers.kafka.observer import read_committed_offsets
from tests.chaos.verdict import Verdict
from tests.deploy.rules import find_connector, find_pod, select
from tests.deploy.test_manifests import render
from tests.images.pod import POD, find_probe, find_server, make_playable, write_yaml
from tests.images.podman import Container, check_podman, image_size_bytes, podman, try_podman
from tests.system.daemons import names, png, wait_until
from tests.system.test_relay import Site, pictures
from tools.archive import export, pack
from tools.exported import classes, first_images
from tools.servers.kafka import kafka
from tools.servers.process import ROOT, StackError, check_free, free_ports
from tools.servers.torchserve import PORTS, read_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.deploy.rules import Objects

MAX_SERVER_BYTES, MAX_CONNECTOR_BYTES = 1_500_000_000, 250_000_000
IMAGES = 1_000
"""As many pictures as must become results one by one."""
LOAD = 6_000
"""Records that are there at once when a container is stopped or killed; 1,000 and more a second."""
REFUSAL_S = 60.0
"""Seconds in which a worker has tried to load its archive."""
READ_S = 240.0
"""Seconds until all results must be there, a dead member's session among them."""
USER = "10001:10001"
FOLDER = "/run/fmnist"
"""The only place where the server may write."""

PREDICT = """
import json, pathlib, sys, urllib.request
def predict(path):
    headers = {"Content-Type": "image/png"}
    asked = urllib.request.Request(sys.argv[1], path.read_bytes(), headers)
    return json.load(urllib.request.urlopen(asked, timeout=30))["class"]
print(json.dumps([predict(path) for path in sorted(pathlib.Path("/pictures").iterdir())]))
"""
TORCH = "import torch; print(torch.__version__)"
PING = """
import json, urllib.request
print(json.load(urllib.request.urlopen("http://127.0.0.1:8080/ping", timeout=5))["status"])
"""
WRITE = "import pathlib; pathlib.Path('/opt/fmnist/written').touch()"


class Findings:
    """Figures, and what among them is not as promised."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.broken: list[str] = []

    def note(self, name: str, value: object, *, promised: bool = True) -> None:
        """Keep a figure, and its name when it is not as promised."""
        self.found[name] = value
        if not promised:
            self.broken.append(f"{name.replace('_', ' ')}: {value}")

    def conclude(self) -> Verdict:
        """Return the verdict."""
        return Verdict(self.found, self.broken)


class Images(NamedTuple):
    """The names of what was built."""

    server: str = "localhost/fmnist-server"
    connector: str = "localhost/fmnist-connector"


def start_server(stack: ExitStack, image: str, *options: str) -> Container:
    """Start TorchServe alone, as tightly as the pod does; its loopback is its own."""
    container = Container(next(names))
    stack.callback(container.remove)
    tight = ("--read-only", "--read-only-tmpfs=false", "--user", USER, "--cap-drop", "ALL")
    alone = ("--security-opt", "no-new-privileges", "--network", "none")
    tmpfs = f"type=tmpfs,destination={FOLDER},exec,U=true,tmpfs-mode=700"
    pictures = f"{write_pictures(stack)}:/pictures:ro"
    run = ("run", "--detach", "--name", container.name, *tight, *alone)
    podman(*run, "--mount", tmpfs, "--volume", pictures, *options, image)
    return container


def make_public_folder(stack: ExitStack) -> Path:
    """Return a new folder that the user of a container can read."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    return folder


def write_pictures(stack: ExitStack) -> Path:
    """Return a folder with the first test images as files."""
    folder = make_public_folder(stack)
    for number, image in enumerate(first_images(IMAGES)):
        (folder / f"{number:04}.png").write_bytes(png(image))
    return folder


def check_server(images: Images) -> Verdict:
    """TorchServe serves on a read-only root, is seen to be sick, and ends when asked."""
    check_podman(images.server)
    probe = find_probe(render("kafka"))
    findings = Findings()
    size = image_size_bytes(images.server)
    with ExitStack() as stack:
        server = start_server(stack, images.server)
        findings.note("ready_after_seconds", round(server.wait_until_ready(probe), 1))
        torch = server.ask_python(TORCH)
        findings.note("torch_of_the_image", torch)
        # With a TORCH_INDEX the size is that of its wheels.
        small = size < MAX_SERVER_BYTES or "debian" not in torch
        findings.note("bytes_of_the_image", size, promised=small)
        note_classes(findings, server)
        user = podman("exec", server.name, "id", "-u")
        findings.note("user", user, promised=user == USER.partition(":")[0])
        wrote = server.ask(["python3", "-c", WRITE])
        findings.note("exit_of_a_write", wrote.returncode, promised="Read-only" in wrote.stderr)
        note_sickness(findings, server, probe)
        note_end(findings, server)
    return findings.conclude()


def note_classes(findings: Findings, server: Container) -> None:
    """It answers each picture as the exported model does."""
    url = f"{read_properties(ROOT / 'config.properties')['inference_address']}/predictions/fmnist"
    found = json.loads(podman("exec", server.name, "python3", "-c", PREDICT, url))
    expected = classes(first_images(IMAGES)).tolist()
    findings.note("images", len(found), promised=len(found) == IMAGES)
    differ = sum(one != other for one, other in zip(found, expected, strict=True))
    findings.note("classes_unlike_the_models", differ, promised=differ == 0)


def note_end(findings: Findings, server: Container) -> None:
    """SIGTERM ends it in good order."""
    findings.note("seconds_to_stop", round(server.stop(30), 1))
    code = server.state()["ExitCode"]
    findings.note("exit_after_SIGTERM", code, promised=code == 0)


def check_pt2(images: Images) -> Verdict:
    """An archive of torch.export, brought by a volume, answers where there is no compiler.

    Unless the image's torch is older than the one that wrote it: then the log says so.
    """
    check_podman(images.server)
    findings = Findings()
    with ExitStack() as stack:
        store = make_public_folder(stack)
        archive = pack(export("latest", "fmnist", "pt2"), store)
        volume = f"{store}:/opt/fmnist/model_store:ro"
        server = start_server(stack, images.server, "--volume", volume)
        inside = server.ask_python(TORCH)
        with zipfile.ZipFile(archive) as opened:
            wrote = json.loads(opened.read("model.json"))["versions"]["torch"]
        findings.note("torch_of_the_archive", wrote)
        findings.note("torch_of_the_image", inside)
        compilers = server.ask(["sh", "-c", "command -v cc gcc g++ clang"]).stdout.split()
        findings.note("compilers", len(compilers), promised=not compilers)
        if read_release(inside) < read_release(wrote):
            note_refusal(findings, server)
        else:
            probe = find_probe(render("kafka"))
            findings.note("ready_after_seconds", round(server.wait_until_ready(probe), 1))
            note_classes(findings, server)
        note_end(findings, server)
    return findings.conclude()


def read_release(version: str) -> tuple[int, ...]:
    """Return major and minor number of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def note_refusal(findings: Findings, server: Container) -> None:
    """TorchServe's log names both versions of torch."""
    read = f"print(open('{FOLDER}/server/torchserve.log').read())"
    deadline = time.monotonic() + REFUSAL_S
    while "and this is the older" not in (log := server.ask_python(read)):
        if time.monotonic() > deadline:
            raise StackError(f"the server does not say why it cannot start:\n{log[-2000:]}")
        time.sleep(0.5)
    findings.note("refused_by_name", value=True)


def note_sickness(findings: Findings, server: Container, probe: Sequence[str]) -> None:
    """Let its workers hang: /ping calls it healthy, the command of the probe must not."""
    well = server.ask(probe).returncode
    findings.note("probe_of_a_server_that_is_well", well, promised=well == 0)
    hung = server.signal_workers(signal.SIGSTOP)
    findings.note("workers_that_hang", hung, promised=hung > 0)
    findings.note("ping_of_the_sick_server", server.ask_python(PING))
    sick = server.ask(probe).returncode
    findings.note("probe_of_the_sick_server", sick, promised=sick == 1)
    server.signal_workers(signal.SIGCONT)
    findings.note("seconds_to_recover", round(server.wait_until_ready(probe), 1))


class Pod(NamedTuple):
    """The rendered pod, played, between the topics of `site`."""

    rendered: Objects
    site: Site
    server: Container
    connector: Container
    metrics: str

    @property
    def grace_s(self) -> int:
        """The grace that the manifest gives."""
        seconds: int = find_pod(self.rendered)["terminationGracePeriodSeconds"]
        return seconds

    def settings(self) -> dict[str, str | int]:
        """What connector.toml must say here."""
        return {
            "bootstrap_servers": self.site.kafka.bootstrap_servers,
            "input_topic": self.site.topics[0],
            "output_topic": self.site.topics[1],
            "group": self.site.name,
            "metrics_port": int(self.metrics.rpartition(":")[2]),
        }

    def play(self, images: Images, folder: Path, stack: ExitStack) -> None:
        """Start it; the images get the names that the manifest gives them."""
        podman("tag", images.server, find_server(self.rendered)["image"])
        podman("tag", images.connector, find_connector(self.rendered)["image"])
        objects = make_playable(self.rendered, self.settings())
        file = folder / "pod.yaml"
        file.write_text(write_yaml(objects))
        clean_up(objects)  # a volume that is there would keep the file of an earlier run
        stack.callback(clean_up, objects)
        podman("kube", "play", str(file))

    def count_finished(self) -> int:
        """Return how many records are committed, each with its result, now."""
        committed = read_committed_offsets(self.site.kafka.bootstrap_servers, self.site.name)
        return sum(committed.values())

    def status(self, path: str) -> int:
        """Return what /livez or /readyz answers."""
        return requests.get(self.metrics + path, timeout=10).status_code


def clean_up(objects: Objects) -> None:
    """Remove what `podman kube play` made of the objects."""
    try_podman("pod", "rm", "--force", POD)
    for one in select(objects, "ConfigMap"):
        try_podman("volume", "rm", "--force", one["metadata"]["name"])


def open_pod(images: Images, stack: ExitStack) -> Pod:
    """Start Kafka on the host and the rendered pod, and wait until the server predicts."""
    for address in map(read_properties(ROOT / "config.properties").__getitem__, PORTS):
        check_free(int(address.rpartition(":")[2]))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    site = Site(kafka=stack.enter_context(kafka()), folder=folder, stack=stack)
    site.create()
    server, connector = Container(f"{POD}-server"), Container(f"{POD}-connector")
    metrics = f"http://127.0.0.1:{free_ports(1)[0]}"
    pod = Pod(render("kafka"), site, server, connector, metrics)
    pod.play(images, folder, stack)
    stack.push(partial(show_end, pod))
    return pod


def show_end(pod: Pod, kind: type[BaseException] | None, *_: object) -> None:
    """After a failure, show what both containers printed."""
    if kind:
        for container in (pod.server, pod.connector):
            sys.stderr.write(f"{container.name}:\n{container.tail()}\n")


def check_pair(images: Images) -> Verdict:
    """The rendered pod beside Kafka: a stop, a kill, a sick server; nothing lost or doubled."""
    check_podman(*images)
    findings = Findings()
    size = image_size_bytes(images.connector)
    findings.note("bytes_of_the_connector", size, promised=size < MAX_CONNECTOR_BYTES)
    with ExitStack() as stack:
        pod = open_pod(images, stack)
        probe = find_probe(pod.rendered)
        findings.note("ready_after_seconds", round(pod.server.wait_until_ready(probe), 1))
        note_results(findings, pod)
        note_sickness(findings, pod.server, probe)
        note_kill(findings, pod)
        note_stop(findings, pod)
        note_balance(findings, pod, IMAGES + 2 * LOAD)
        for name, container in (("connector", pod.connector), ("server", pod.server)):
            findings.note(f"seconds_to_stop_the_{name}", round(container.stop(pod.grace_s), 1))
            code = container.state()["ExitCode"]
            findings.note(f"exit_of_the_{name}", code, promised=code == 0)
    return findings.conclude()


def note_results(findings: Findings, pod: Pod) -> None:
    """1,000 images become 1,000 results, with the classes of the exported model."""
    pod.site.produce(pictures(IMAGES))
    seen = pod.site.read(pod.site.topics[1], IMAGES, READ_S)
    findings.note("images", IMAGES)
    findings.note("results", len(seen), promised=len(seen) == IMAGES)
    served = {int(dict(one.headers)["index"]): one.result["class"] for one in seen}
    differ = sum(served[i] != one for i, one in enumerate(classes(first_images(IMAGES)).tolist()))
    findings.note("classes_unlike_the_models", differ, promised=differ == 0)
    for path in ("/livez", "/readyz"):
        status = pod.status(path)
        findings.note(f"status_of_{path}", status, promised=status == requests.codes.ok)


@contextmanager
def under_load(pod: Pod) -> Iterator[None]:
    """Produce many records; the block begins when some of them are finished."""
    before, records = pod.count_finished(), pictures(LOAD)
    feeder = threading.Thread(target=pod.site.produce, args=(records,))
    feeder.start()
    wait_until(lambda: pod.count_finished() > before)
    yield
    feeder.join()


def note_kill(findings: Findings, pod: Pod) -> None:
    """The connector is killed under load: it comes back, and the server notices nothing."""
    before = pod.server.state()["StartedAt"], pod.server.list_workers()
    started = pod.connector.state()["StartedAt"]
    with under_load(pod):
        pod.connector.kill()
        left = IMAGES + LOAD - pod.count_finished()
    findings.note("open_records_after_the_kill", left, promised=left > 0)
    pod.site.read(pod.site.topics[1], IMAGES + LOAD, READ_S)
    again = pod.connector.state()
    back = again["Running"] and again["StartedAt"] != started
    findings.note("connector_is_back", back, promised=back)
    same = (pod.server.state()["StartedAt"], pod.server.list_workers()) == before
    findings.note("server_is_untouched", same, promised=same)


def note_stop(findings: Findings, pod: Pod) -> None:
    """The connector is stopped under load with the manifest's grace, and started again."""
    with under_load(pod):
        findings.note("seconds_to_stop_under_load", round(pod.connector.stop(pod.grace_s), 1))
        left = IMAGES + 2 * LOAD - pod.count_finished()
    code = pod.connector.state()["ExitCode"]
    findings.note("exit_under_load", code, promised=code == 0)
    findings.note("open_records_after_the_stop", left, promised=left > 0)
    podman("start", pod.connector.name)


def note_balance(findings: Findings, pod: Pod, total: int) -> None:
    """Count what was lost, doubled or rejected of all that was produced."""
    seen = pod.site.read(pod.site.topics[1], total, READ_S)
    different = len({one.result["id"] for one in seen})
    dead = len(pod.site.read(pod.site.topics[2], 0))
    findings.note("records", total)
    findings.note("lost", total - different, promised=total == different)
    findings.note("doubled", len(seen) - different, promised=len(seen) == different)
    findings.note("dead_letters", dead, promised=dead == 0)


CASES: Mapping[str, Callable[[Images], Verdict]] = {
    "server": check_server,
    "pair": check_pair,
    "pt2": check_pt2,
}
