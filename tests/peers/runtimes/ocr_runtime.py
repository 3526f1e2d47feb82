"""A server by KServe's SDK for a model and a decoder that are not ours: ddddocr reads text."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from ddddocr import DdddOcr  # type: ignore[import-not-found]  # in its own environment
from kserve import Model, ModelServer  # type: ignore[import-not-found]


class Text(Model):  # type: ignore[misc]
    """The model; what it cannot decode fails the whole request with 500."""

    def __init__(self) -> None:
        super().__init__("ddddocr")
        self._reader = DdddOcr(show_ad=False)
        self.ready = True

    def predict(self, payload: dict[str, Any], *_: object, **__: object) -> dict[str, Any]:
        """Answer the text in each image."""
        files = [b64decode(one["b64"]) for one in payload["instances"]]
        return {"predictions": [self._reader.classification(file) for file in files]}


if __name__ == "__main__":
    ModelServer(workers=1).start([Text()])
