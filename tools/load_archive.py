"""Loads an unpacked archive as a worker of TorchServe does, and lets it answer images.

A program for the environment that `tools.verify` makes, so that it needs nothing of ours:
`python load_archive.py ARCHIVE_FOLDER IMAGES_FOLDER METRICS_YAML ANSWERS_JSON`, in ARCHIVE_FOLDER.
The answers are written as a list, in the order of the images' names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.model_loader import ModelLoaderFactory
from ts.service import Service

BATCH = 32


def load(folder: Path, metrics_file: Path) -> Any:  # noqa: ANN401 - TorchServe has no types
    """Return TorchServe's service of the archive; raises whatever stops a worker."""
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text("utf-8"))["model"]
    metrics = MetricsCacheYamlImpl(str(metrics_file))
    metrics.initialize_cache()
    metrics.model_name = manifest["modelName"]
    loader = ModelLoaderFactory.get_model_loader()
    name, handler = manifest["modelName"], manifest["handler"]
    return loader.load(name, str(folder), handler, batch_size=BATCH, metrics_cache=metrics)


def answer(service: Any, images: list[bytes]) -> list[Any]:  # noqa: ANN401 - TorchServe has no types
    """Return what the handler answers to each image file, all in one batch of lone requests."""
    requests = [
        {
            "requestId": b"%d" % index,
            "parameters": [{"name": "body", "contentType": "image/png", "value": image}],
            "headers": [{"name": b"Content-Type", "value": b"image/png"}],
        }
        for index, image in enumerate(images)
    ]
    context = service.context
    context.request_processor, rows, ids = Service.retrieve_data_for_inference(requests)
    context.request_ids = context.metrics.request_ids = ids
    return [json.loads(body) for body in service._entry_point(rows, context)]  # noqa: SLF001 - as predict() does, which packs the answers for Java


def main(archive: Path, images: Path, metrics: Path, answers: Path) -> None:
    """Answer all images; see above."""
    try:
        service = load(archive, metrics)
    except ImportError as error:  # the loader goes on to look among its own handlers
        sys.exit(f"{type(error).__name__}: {error.__context__ or error}")
    files = [file.read_bytes() for file in sorted(images.iterdir())]
    found = [
        each
        for start in range(0, len(files), BATCH)
        for each in answer(service, files[start : start + BATCH])
    ]
    answers.write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
