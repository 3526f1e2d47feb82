"""A bomb: a small request that is dear to answer, and what its makers share."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_FILE_BYTES = 5_990_000
"""Of one image file; the handler takes 6,000,000."""
MAX_BODY_BYTES = 6_540_000
"""Of a request; the server takes 6,553,500."""

BOUNDARY = "bomb"


@dataclass(frozen=True, slots=True)
class Bomb:
    """A request that costs more than its bytes say.

    `make` returns one image file or one JSON body; `copies` above 1 sends the file so often, as
    parts of a multipart body. `row` names the row of the abuse report that it stands for, "" for a
    neighbour. Accepted or refused: only what it costs has bounds.
    """

    key: str
    name: str
    make: Callable[[], bytes]
    media_type: str = ""
    copies: int = 1
    row: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it is one image file, and not JSON."""
        return not self.media_type.endswith("json")

    def parts(self) -> dict[str, bytes]:
        """Return what TorchServe hands over: the body, or the parts by name."""
        data = self.make()
        if self.copies == 1:
            return {"body": data}
        return {f"{index:04}": data for index in range(self.copies)}

    def content_type(self) -> str:
        """Return the Content-Type of the request."""
        multipart = f"multipart/form-data; boundary={BOUNDARY}"
        return self.media_type if self.copies == 1 else multipart

    def headers(self) -> dict[str, Any]:
        """Return the headers as the handler gets them: of the request and of each entry."""
        names = ["body"] if self.copies == 1 else [f"{i:04}" for i in range(self.copies)]
        entries = {name: {"content-type": self.media_type} for name in names}
        return {"Content-Type": self.content_type(), **entries}

    def body(self) -> bytes:
        """Return the body as a client posts it."""
        parts = self.parts()
        if self.copies == 1:
            return parts["body"]
        heads = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            f"Content-Type: {self.media_type}\r\n\r\n"
            for name in parts
        )
        framed = (
            head.encode() + data + b"\r\n" for head, data in zip(heads, parts.values(), strict=True)
        )
        return b"".join(framed) + f"--{BOUNDARY}--\r\n".encode()


def fill(piece: bytes, size: int = MAX_FILE_BYTES - 1000) -> bytes:
    """Return `piece` as often as it fits into `size` bytes."""
    return piece * (size // len(piece))


def in_json(data: bytes, times: int = 1) -> bytes:
    """Return a JSON body that holds the same file several times in Base64."""
    item = {"b64": base64.b64encode(data).decode()}
    return json.dumps({"instances": [item] * times}).encode()
