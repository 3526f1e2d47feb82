"""What a pack of images costs TorchServe in each form that the handler takes.

All forms are sent in turns within the same run, the same images and as many at once; the CPU is
that of the processes themselves, from /proc, so other work on the machine counts little. Each
form asks for the same: three classes of each image and an error in the place of a bad one.
"""

from __future__ import annotations

import base64
import json
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from connectors.inference.torchserve import encode_multipart
from connectors.records import Image
from tests.bench.pictures import encode
from tests.bench.usage import find_torchserve
from tests.bench.usage import measure as measure_usage
from tools.exported import classes, first_images
from tools.servers.process import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.servers.torchserve import TorchServe

PACK = 64
"""Images of one request, as the connectors send."""
IN_FLIGHT = 4

ASKED = {
    "parameters": {"top": 3},
    "outputs": [{"name": name} for name in ("label", "score", "class", "error")],
}
"""Of the Open Inference Protocol."""


class Pack(NamedTuple):
    """One request: where to, headers, bytes."""

    path: str
    headers: dict[str, str]
    body: bytes


def pack_multipart(files: Sequence[bytes]) -> Pack:
    """The connectors' own form today."""
    content_type, body = encode_multipart([Image(data) for data in files])
    return Pack("/predictions/{model}", {"Content-Type": content_type}, body)


def pack_v1(files: Sequence[bytes]) -> Pack:
    """JSON of KServe v1, Base64."""
    instances = [{"b64": base64.b64encode(data).decode()} for data in files]
    body = json.dumps({"instances": instances}).encode()
    return Pack("/v1/models/{model}:predict", {"Content-Type": "application/json"}, body)


def pack_v2(files: Sequence[bytes]) -> Pack:
    """JSON of the Open Inference Protocol, Base64."""
    data = [base64.b64encode(data).decode() for data in files]
    tensor = {"name": "images", "datatype": "BYTES", "shape": [len(files)], "data": data}
    body = json.dumps({"inputs": [tensor], **ASKED}).encode()
    return Pack("/v2/models/{model}/infer", {"Content-Type": "application/json"}, body)


def pack_v2_binary(files: Sequence[bytes]) -> Pack:
    """The Open Inference Protocol with the files behind the JSON."""
    behind = b"".join(struct.pack("<I", len(data)) + data for data in files)
    parameters = {"binary_data_size": len(behind)}
    tensor = {
        "name": "images",
        "datatype": "BYTES",
        "shape": [len(files)],
        "parameters": parameters,
    }
    head = json.dumps({"inputs": [tensor], **ASKED}).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Pack("/v2/models/{model}/infer", headers, head + behind)


FORMS: dict[str, Callable[[Sequence[bytes]], Pack]] = {
    "multipart": pack_multipart,
    "v2, binary": pack_v2_binary,
    "v2, Base64": pack_v2,
    "v1, Base64": pack_v1,
}


def read_classes(answer: dict[str, Any]) -> list[int]:
    """Return the likeliest class of each image, of an answer of any form."""
    if "predictions" in answer:
        return [prediction["class"] for prediction in answer["predictions"]]
    output = next(output for output in answer["outputs"] if output["name"] == "class")
    images, top = output["shape"]
    found: list[int] = output["data"]
    return found[: images * top : top]


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU an image, of the server's Java and of its worker; images a second."""

    java_us: float
    worker_us: float
    rate: float

    @property
    def total_us(self) -> float:
        """Of both."""
        return self.java_us + self.worker_us


def measure(server: TorchServe, rounds: int, packs: int, say: Callable[[str], None]) -> str:
    """Compare the forms on a server, and return the table."""
    benchmark = PackedBenchmark(server)
    found = compare_forms(benchmark.run, rounds, packs, say)
    return render_costs(found, {form: len(benchmark.make_pack(form).body) for form in FORMS})


class PackedBenchmark:
    """The forms against one server."""

    def __init__(self, server: TorchServe) -> None:
        self._server = server
        self._pids = find_torchserve(server.process.child.pid)
        images = first_images(PACK)
        self._files = [encode(image) for image in images]
        self._classes = classes(images, server.archive).tolist()

    def make_pack(self, form: str) -> Pack:
        """Return the request of a form."""
        pack = FORMS[form](self._files)
        return pack._replace(path=pack.path.format(model=self._server.model))

    def run(self, form: str, packs: int) -> Cost:
        """Send a form so often. Raises StackError for a wrong answer."""
        pack = self.make_pack(form)
        before = measure_usage(self._pids)
        started = time.monotonic()
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(lambda _: self._send(pack, packs // IN_FLIGHT), range(IN_FLIGHT)))
        seconds = time.monotonic() - started
        images = packs // IN_FLIGHT * IN_FLIGHT * PACK
        after = measure_usage(self._pids)
        java, worker = (
            (after[name].cpu_s - before[name].cpu_s) * 1e6 / images for name in ("jvm", "worker")
        )
        return Cost(java, worker, images / seconds)

    def _send(self, pack: Pack, times: int) -> None:
        address = urlsplit(self._server.address).netloc
        with closing(HTTPConnection(address, timeout=30)) as connection:
            for _ in range(times):
                connection.request("POST", pack.path, pack.body, pack.headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200 or read_classes(json.loads(content)) != self._classes:
                    raise StackError(f"{answer.status}: {content[:500]!r}")


def compare_forms(
    run: Callable[[str, int], Cost], rounds: int, packs: int, say: Callable[[str], None]
) -> dict[str, list[Cost]]:
    """Run every form in each round, in turns, after a round that does not count."""
    forms = list(FORMS)
    found: dict[str, list[Cost]] = {form: [] for form in forms}
    for number in range(rounds + 1):
        first = number % len(forms)
        for form in forms[first:] + forms[:first]:
            cost = run(form, packs)
            if number:
                found[form].append(cost)
        say(f"round {number} of {rounds}" if number else "warmed up")
    return found


def render_costs(found: dict[str, list[Cost]], lengths: dict[str, int]) -> str:
    """Return a table of the medians, and the ranges of the totals; `lengths`: bytes a request."""
    head = (
        f"{'':<12}{'bytes':>8}{'Java':>8}{'worker':>8}{'both':>8}{'range':>14}{'of multipart':>14}"
    )
    base = median(cost.total_us for cost in found["multipart"])
    lines = [f"{PACK} images a request; microseconds of CPU an image; medians", head]
    for form, costs in found.items():
        totals = [cost.total_us for cost in costs]
        java = median(cost.java_us for cost in costs)
        worker = median(cost.worker_us for cost in costs)
        spread = f"{min(totals):.0f}..{max(totals):.0f}"
        lines.append(
            f"{form:<12}{lengths[form]:>8,}{java:>8.1f}{worker:>8.1f}{median(totals):>8.1f}"
            f"{spread:>14}{median(totals) / base:>13.0%}"
        )
    return "\n".join(lines)
