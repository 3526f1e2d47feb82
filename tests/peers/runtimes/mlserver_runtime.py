"""A custom runtime of MLServer: image files in base64 are decoded beside the model."""

from __future__ import annotations

from itertools import chain

from image_sum import CLASSES, score  # type: ignore[import-not-found]  # beside it, when served
from mlserver import MLModel  # type: ignore[import-not-found]  # in its own environment
from mlserver.codecs import Base64Codec  # type: ignore[import-not-found]
from mlserver.types import (  # type: ignore[import-not-found]
    InferenceRequest,
    InferenceResponse,
    ResponseOutput,
)


class ImageSum(MLModel):  # type: ignore[misc]
    """The model; a file that is no image fails its whole request with 500."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer scores, FP32 [n, 10]."""
        rows = [score(file) for file in Base64Codec.decode_input(payload.inputs[0])]
        data = list(chain.from_iterable(rows))
        shape = [len(rows), CLASSES]
        output = ResponseOutput(name="scores", shape=shape, datatype="FP32", data=data)
        return InferenceResponse(model_name=self.name, outputs=[output])
