"""A server by KServe's SDK, v1 and v2; `python kserve_runtime.py --help`.

Images come in base64 in both: of BYTES in binary this SDK (0.21) takes only what is UTF-8.
"""

from __future__ import annotations

from base64 import b64decode
from itertools import chain
from typing import Any

from image_sum import CLASSES, score  # type: ignore[import-not-found]  # beside it, when served
from kserve import (  # type: ignore[import-not-found]  # in its own environment
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelServer,
)
from kserve.errors import InvalidInput  # type: ignore[import-not-found]


def score_all(files: list[bytes]) -> list[list[float]]:
    """Return the scores of each file; one that is no image fails all of them with 400."""
    try:
        return [score(file) for file in files]
    except Exception as error:
        raise InvalidInput(f"no image: {error}") from error


class ImageSum(Model):  # type: ignore[misc]
    """The model."""

    def __init__(self) -> None:
        super().__init__("image-sum")
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        """Tell the one input."""
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Tell the one output."""
        return [{"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]}]

    def predict(self, payload: Any, *_: object, **__: object) -> Any:  # noqa: ANN401
        """Answer in the protocol of the question."""
        if not isinstance(payload, InferRequest):
            files = [b64decode(one["b64"]) for one in payload["instances"]]
            return {"predictions": score_all(files)}
        rows = score_all([b64decode(one) for one in payload.inputs[0].data])
        data = list(chain.from_iterable(rows))
        output = InferOutput("scores", [len(rows), CLASSES], "FP32", data)
        return InferResponse(payload.id or "unnamed", self.name, [output])  # an id is required


if __name__ == "__main__":
    ModelServer(workers=1).start([ImageSum()])
