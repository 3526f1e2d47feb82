"""JSON of strangers, and the Base64 in it: parsed within bounds, and whatever their habits.

What the sender did wrong is raised as `Refused`.
"""

from __future__ import annotations

import base64
import codecs
import gc
import json
import re

from fmnist_gate import Refused

MAX_JSON_LISTS = 1_000_000
"""Lists and objects of one JSON body; an RGB image of 900 x 900 pixels as lists has 810,901."""
JSON_START = re.compile(
    rb"(?:%s|%s|%s)?(?:[ \t\r\n]|\x00)*[{\[]"
    % tuple(map(re.escape, (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)))
)
"""How JSON begins: perhaps a byte order mark, perhaps blanks, in one or two bytes each."""
LINE_BREAKS = re.compile(rb"[ \t]*[\r\n]+[ \t]*")
LOST_SIGNS = bytes.maketrans(b"-_ ", b"+/+")


def is_json(body: object, media_type: str) -> bool:
    """Tell whether a body is JSON: decoded already, named so, or nameless and begun like it."""
    if isinstance(body, (dict, list)):
        return True
    if media_type:
        return media_type.endswith(("/json", "+json"))
    return isinstance(body, (bytes, bytearray)) and JSON_START.match(body) is not None


def parse_json(body: str | bytes | bytearray) -> object:
    """Return the decoded JSON. Raises Refused for what is none, or too deep to be meant."""
    signs = ("[", "{") if isinstance(body, str) else (b"[", b"{")
    if sum(map(body.count, signs)) > MAX_JSON_LISTS:  # type: ignore[arg-type] # of one kind
        raise Refused(
            "too_large",
            f"The JSON has more than {MAX_JSON_LISTS:,} lists: send image files, as b64 or as "
            "parts.",
        )
    # Millions of lists are made and none is garbage: looking for it costs five times the parsing.
    gc.disable()
    try:
        return json.loads(body.lstrip("\ufeff") if isinstance(body, str) else body)
    except (ValueError, RecursionError):
        # Without its cause: the parser's words may quote the body.
        raise Refused("bad_request", "The body is not JSON.") from None
    finally:
        gc.enable()


def decode_base64(encoded: str) -> bytes:
    """Return the bytes; line breaks, the URL-safe alphabet and a lack of padding are no mistake.

    A blank inside a line was a plus before a web form changed it. Raises Refused.
    """
    try:
        packed = LINE_BREAKS.sub(b"", encoded.encode("ascii").strip())
        packed = packed.translate(LOST_SIGNS).rstrip(b"=")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except ValueError:
        raise Refused(
            "bad_request",
            "The text is not Base64: encode the bytes of the image file, with nothing "
            "before or behind.",
        ) from None
