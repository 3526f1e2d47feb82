"""The handler that TorchServe calls: image requests in, predictions out.

A plain class, and the only one here: TorchServe takes a module's single class for the handler.
Nothing of TorchServe is imported, so the room can move to another server.
"""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, wait
from http import HTTPStatus
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fmnist_wire as wire
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Protocol

    from fmnist_gate import Refused
    from fmnist_images import Pixels, Settings

    Network = Callable[[torch.Tensor], torch.Tensor]

    class Context(Protocol):
        """What is used of ts.context.Context; known to the type checker only."""

        system_properties: Mapping[str, Any]
        model_yaml_config: Mapping[str, Any]
        metrics: Any

        def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
            """The HTTP headers; under the name of each entry of the row its type."""

        def set_response_status(self, code: int, phrase: str, idx: int) -> None:
            """A line break in `phrase` would kill the worker."""

        def set_response_content_type(self, idx: int, value: str) -> None:
            """Without it an answer has no type."""

        def set_response_header(self, idx: int, key: str, value: str) -> None:
            """A line break in either would kill the worker."""


logger = logging.getLogger(__name__)

BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""What a processor multiplies in bfloat16 by, as torch calls it; without, it takes far longer."""
CUT_S = 0.03
"""Seconds of the model's CPU from which on a batch is cut; smaller ones leave a core to others."""


class FmnistHandler:
    """Answers the requests of a batch together.

    What the sender did wrong is answered in its own place and never raised. What is wrong with
    the archive is raised by `initialize`, and the worker ends with the reason in its log.
    """

    def initialize(self, context: Context) -> None:
        """Load what lies in the archive, and warm up. Raises ValueError, OSError, RuntimeError."""
        show_failures()
        try:
            self.load_archive(context)
        except (ValueError, OSError, RuntimeError) as error:
            logger.warning("The archive cannot be served: %s", error)
            raise

    def load_archive(self, context: Context) -> None:
        """See `initialize`."""
        folder = Path(context.system_properties["model_dir"])
        self.settings = wire.read_settings(context.model_yaml_config)
        self.card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        names = json.loads((folder / "index_to_name.json").read_text(encoding="utf-8"))
        self.model = wire.read_model(self.card, names)
        self.device = choose_device(context.system_properties.get("gpu_id"))
        self.network = load(folder, self.card, self.device)
        torch.set_num_threads(self.settings.threads)
        self.bfloat16 = uses_bfloat16(self.device, self.settings)
        self.passes = count_passes(self.device, self.settings)
        self.pass_images = self.settings.chunk // self.passes
        # A thread that has not asked torch itself runs its first layer on all cores.
        self.pool = ThreadPoolExecutor(
            self.passes, initializer=torch.set_num_threads, initargs=(self.settings.threads,)
        )
        self.warm_up()

    def warm_up(self) -> None:
        """Run the sizes that are met later: TorchScript compiles on the first runs of a shape.

        The last run of one thread shows the CPU that an image costs; behind it all run at once, as
        much as is ever in memory. Raises ValueError when the model and the labels do not match.
        """
        zeros = np.zeros(self.model.shape, np.uint8)
        for size in (1, self.pass_images) * 2:
            started = time.process_time()
            rows = self.forward([zeros] * size)
            self.pass_s = (time.process_time() - started) / size
        if rows.shape[1] != len(self.model.labels):
            raise ValueError(
                f"the network knows {rows.shape[1]} classes, model.json {len(self.model.labels)}"
            )
        self.predict([zeros] * self.pass_images * self.passes)

    def handle(self, data: Sequence[dict[str, Any]], context: Context) -> list[bytes]:
        """Answer each request of the batch, in order, as compact JSON."""
        if asks_description(data, context):
            description = wire.describe(self.card, self.model, self.settings)
            return respond([(HTTPStatus.OK, description)], context)
        questions = self.unpack(data, context)
        images = stack(questions)
        rows = self.predict(images)
        answers = [
            wire.answer(question, part, self.model, self.settings)
            for question, part in zip(questions, split(rows, questions), strict=True)
        ]
        count(questions, context)
        return respond(answers, context)

    def unpack(
        self, data: Sequence[dict[str, Any]], context: Context
    ) -> list[wire.Question | Refused]:
        """Read each request on its own, so that a bad one harms no other."""
        rows = [(row, context.get_all_request_header(index)) for index, row in enumerate(data)]
        return wire.unpack_batch(rows, self.model, self.settings, time.monotonic, self.pass_s)

    def predict(self, images: Sequence[Pixels]) -> list[wire.Row | None]:
        """Return the probabilities of each image; None where the model failed on it.

        Passes run at once, on a thread each: torch releases the GIL meanwhile. All of them
        have ended when this returns or raises, so the next batch finds the memory free.
        """
        pieces = self.cut(images)
        if self.passes == 1 or len(pieces) == 1:
            return [row for piece in pieces for row in self.predict_piece(piece)]
        passes = [self.pool.submit(self.predict_piece, piece) for piece in pieces]
        wait(passes)
        return [row for one in passes for row in one.result()]

    def cut(self, images: Sequence[Pixels]) -> list[Sequence[Pixels]]:
        """Cut a batch in equal pieces, as many as passes run at once or a multiple of that.

        No more than `chunk` images are in all passes. What takes less than CUT_S stays whole.
        """
        count = len(images)
        if count <= self.pass_images and count * self.pass_s < CUT_S:
            return [images] if count else []
        rounds = ceil(count / (self.pass_images * self.passes))
        size = ceil(count / (rounds * self.passes))
        return [images[start : start + size] for start in range(0, count, size)]

    def predict_piece(self, images: Sequence[Pixels]) -> list[wire.Row | None]:
        """Try the images together, and one at a time when that failed: only the guilty fail."""
        try:
            return [row if np.isfinite(row).all() else None for row in self.forward(images)]
        except (RuntimeError, torch.jit.Error):
            logger.warning("The model failed on %d images", len(images), exc_info=True)
        if len(images) == 1:
            return [None]
        return [row for image in images for row in self.predict_piece([image])]

    def forward(self, images: Sequence[Pixels]) -> wire.Row:
        """uint8 [C, H, W] each in, probabilities float32 [images, classes] out."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16),
        ):
            batch = torch.from_numpy(np.stack(images)).to(self.device)
            rows: wire.Row = self.network(batch).float().cpu().numpy()
        return rows


def show_failures() -> None:
    """Let our own failures reach the server's log.

    TorchServe sends what a worker logs to stdout, where a line counts as INFO and is dropped by
    serving/log4j2.xml as the thousand others are; a line of stderr counts as a warning.
    """
    for name in (__name__, wire.__name__):
        logging.getLogger(name).addHandler(cast("logging.Handler", logging.lastResort))


def choose_device(gpu: int | None) -> torch.device:
    """Return the GPU that TorchServe assigned to this worker, or the CPU."""
    return torch.device("cpu" if gpu is None else f"cuda:{gpu}")


def uses_bfloat16(device: torch.device, settings: Settings) -> bool:
    """Tell whether the model multiplies in bfloat16; a processor must have instructions for it.

    Where it has not a pass can take many seconds (pytorch issue 183815).
    """
    if settings.precision != "bfloat16":
        return False
    able = device.type != "cpu" or any(read_capabilities().get(name) for name in BFLOAT16)
    if not able:
        logger.warning(
            "The model multiplies in float32 and not in bfloat16: the processor has neither %s, "
            "or torch %s does not say so.",
            " nor ".join(BFLOAT16),
            torch.__version__,
        )
    return able


def read_capabilities() -> Mapping[str, Any]:
    """Return what torch says of the processor; an older one says nothing."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def count_passes(device: torch.device, settings: Settings) -> int:
    """Return how many passes run at once: a GPU takes one after the other."""
    return settings.passes if device.type == "cpu" else 1


def load(folder: Path, card: Mapping[str, Any], target: torch.device) -> Network:
    """Load the network in the format that model.json names; older ones name none.

    Raises ValueError, OSError or RuntimeError.
    """
    named = card.get("format", "torchscript")
    if named not in FORMATS:
        raise ValueError(
            f"model.json: format {named!r} is unknown; this handler serves {' and '.join(FORMATS)}"
        )
    name, load_file = FORMATS[named]
    if named == "pt2":
        check_torch(card)
    return load_file(folder / name, target)


def check_torch(card: Mapping[str, Any]) -> None:
    """Raise ValueError when this torch is older than the one that wrote the program."""
    wrote = card.get("versions", {}).get("torch", "0")
    if read_release(wrote) > read_release(torch.__version__):
        raise ValueError(
            f"model.pt2 is of torch {wrote}, and this is the older {torch.__version__}: serve it "
            "with that torch or a newer one, or make the archive with --format torchscript"
        )


def read_release(version: str) -> tuple[int, ...]:
    """Return major and minor number of a version; what follows them may differ."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def load_torchscript(path: Path, target: torch.device) -> Network:
    """Load a TorchScript module for inference. Raises ValueError or RuntimeError."""
    with warnings.catch_warnings():
        # TorchScript is the format of the archive on purpose; Python ends before it does.
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", FutureWarning)
        network = torch.jit.load(path, map_location=target)  # type: ignore[no-untyped-call] # torch
    return cast("Network", network)


def load_program(path: Path, target: torch.device) -> Network:
    """Load a program of torch.export for inference. Raises ValueError, OSError, RuntimeError.

    A pickle in the file would run: it is to be trusted as the archive is, which holds this code.
    """
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415 - seconds, for this alone

    try:
        program = torch.export.load(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch says nothing of what its reader raises for a damaged file
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path.name} is damaged: make the archive again ({why})") from error
    return cast("Network", move_to_device_pass(program, target).module())


FORMATS: Mapping[str, tuple[str, Callable[[Path, torch.device], Network]]] = {
    "torchscript": ("model.pt", load_torchscript),
    "pt2": ("model.pt2", load_program),
}
"""The file of each format, and what loads it."""


def asks_description(data: Sequence[dict[str, Any]], context: Context) -> bool:
    """Tell whether this is GET /models/NAME?customized=true, which comes alone and empty."""
    headers = context.get_all_request_header(0)
    return len(data) == 1 and not data[0] and headers.get("describe") == "True"


def stack(questions: Sequence[wire.Question | Refused]) -> list[Pixels]:
    """Return the good images of all requests in one line."""
    return [image for question in questions for image in wire.good_images(question)]


def split(
    rows: Sequence[wire.Row | None], questions: Sequence[wire.Question | Refused]
) -> Iterator[list[wire.Row | None]]:
    """Deal the rows out again: to each request as many as it has good images."""
    line = iter(rows)
    for question in questions:
        yield list(islice(line, len(wire.good_images(question))))


def count(questions: Sequence[wire.Question | Refused], context: Context) -> None:
    """Tell TorchServe's metrics of the batch.

    With `idx` a line names one request; without, all of the batch.
    """
    refused = sum(wire.count_refused(question) for question in questions)
    figures = {"FmnistBatches": 1, "FmnistImages": len(stack(questions)), "FmnistRejected": refused}
    for name, value in figures.items():
        if value and context.metrics is not None:
            context.metrics.add_counter(name, value, idx=0)


def respond(answers: Sequence[tuple[HTTPStatus, wire.Body]], context: Context) -> list[bytes]:
    """Set status, type and headers of each answer, and return their bytes."""
    encoded = [wire.encode(body) for _, body in answers]
    for index, ((status, _), (_, length)) in enumerate(zip(answers, encoded, strict=True)):
        context.set_response_status(status.value, status.phrase, index)
        kind = "application/json" if length is None else "application/octet-stream"
        context.set_response_content_type(index, kind)
        if length is not None:
            context.set_response_header(index, wire.LENGTH_HEADER, str(length))
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            context.set_response_header(index, "Retry-After", str(wire.RETRY_AFTER_S))
    return [content for content, _ in encoded]
