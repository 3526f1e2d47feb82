"""Bombs of JSON: lists and objects cost ten to fifty times their text."""

from __future__ import annotations

import base64
from functools import partial

from tests.handler.bomb import MAX_BODY_BYTES, Bomb

ROOM = MAX_BODY_BYTES - 100


def repeat(piece: str, start: str = '{"instances":[[', end: str = "]]}", room: int = ROOM) -> bytes:
    """Return one instance, or what `start` begins, of as many pieces as fit."""
    return (start + ",".join([piece] * (room // (len(piece) + 1))) + end).encode()


def instances(piece: str) -> bytes:
    """Return as many instances as fit."""
    return repeat(piece, '{"instances":[', "]}")


def nested(opened: str, closed: str, depth: int = 500) -> bytes:
    """Return one instance of pieces that are nested so deep."""
    return repeat(opened * depth + "0" + closed * depth)


def deep(opened: str, closed: str = "", core: str = "") -> bytes:
    """Return one instance nested as deep as the body allows."""
    depth = (ROOM - len(core)) // (len(opened) + len(closed))
    return ('{"instances":[' + opened * depth + core + closed * depth + "]}").encode()


def ragged() -> bytes:
    """Return one instance of rows of different lengths."""
    rows = "[0],[0,0],[],[0,0,0],[[0]],[0]"
    return repeat(rows)


def square(side: int, pixel: str = "0") -> bytes:
    """Return one instance of side x side pixels."""
    row = "[" + ",".join([pixel] * side) + "]"
    return ('{"instances":[[' + ",".join([row] * side) + "]]}").encode()


def coloured(count: int) -> bytes:
    """Return one instance [1][count][3]."""
    return ('{"instances":[[[' + ",".join(["[0,0,0]"] * count) + "]]]}").encode()


def base64_of(text: str) -> bytes:
    """Return one instance of Base64, a text repeated."""
    return ('{"instances":[{"b64":"' + text * (ROOM // len(text)) + '"}]}').encode()


def many_keys(unique: bool) -> bytes:  # noqa: FBT001 - a table
    """Return an object of many keys beside the instances."""
    pairs = (f'"{number if unique else 0:07}":0' for number in range(ROOM // 12))
    return ('{"instances":[[[0]]],' + ",".join(pairs) + "}").encode()


def tensor(shape: str, data: str) -> bytes:
    """Return a request of the Open Inference Protocol with pixels."""
    head = '{"inputs":[{"name":"x","datatype":"UINT8","shape":'
    return f'{head}{shape},"data":{data}}}]}}'.encode()


def column(count: int) -> bytes:
    """Return pixels [1][count][1]."""
    return tensor(f"[1,{count},1]", "[[" + ",".join(["[7]"] * count) + "]]")


def bomb(key: str, name: str, make: partial[bytes], row: str = "") -> Bomb:
    """Return a bomb of one JSON body."""
    return Bomb(f"json-{key}", f"JSON, {name}", make, "application/json", row=row)


BOMBS = (
    bomb("lists", "6.5 MB of [0]", partial(repeat, "[0]"), "H1"),
    bomb("ragged", "6.5 MB of ragged lists", partial(ragged), "H1"),
    bomb("empty-lists", "2.2 million empty lists", partial(repeat, "[]"), "H1"),
    bomb("dicts", "objects of one key", partial(repeat, '{"":0}')),
    bomb("dicts-empty", "2.2 million empty objects", partial(repeat, "{}")),
    bomb("dicts-nested", "objects 500 deep", partial(nested, '{"":', "}")),
    bomb("dicts-lists", "objects of empty lists", partial(repeat, '{"":[]}')),
    bomb("lists-nested", "lists 500 deep", partial(nested, "[", "]")),
    bomb("pairs", "lists of two", partial(repeat, "[0,0]")),
    bomb("twice", "lists of a list", partial(repeat, "[[]]")),
    bomb("deep", "6.5 MB of [", partial(deep, "[")),
    bomb("deep-closed", "lists 3 million deep", partial(deep, "[", "]", "0")),
    bomb("deep-dicts", "objects a million deep", partial(deep, '{"":', "}", "0")),
    bomb("instances", "1.6 million instances", partial(instances, "[0]")),
    bomb("instances-numbers", "3 million instances that are numbers", partial(instances, "0")),
    bomb("instances-objects", "instances of b64", partial(instances, '{"b64":""}')),
    bomb("instances-empty", "2.2 million empty instances", partial(instances, "[]")),
    bomb("numbers", "3.2 million numbers", partial(repeat, "0")),
    bomb("floats", "floats", partial(repeat, "1.5")),
    bomb("exponents", "numbers 1e999", partial(repeat, "1e999")),
    bomb("long-numbers", "numbers of 4,300 digits", partial(repeat, "9" * 4_299)),
    bomb("endless-number", "a number of 6.5 million digits", partial(repeat, "9" * (ROOM - 2))),
    bomb(
        "endless-float", "a float of 6.5 million digits", partial(repeat, "0." + "9" * (ROOM - 9))
    ),
    bomb("large-numbers", "numbers of 19 digits", partial(repeat, "9" * 19)),
    bomb("nan", "NaN", partial(repeat, "[NaN]")),
    bomb("texts", "texts", partial(repeat, '"ab"')),
    bomb("escapes", "a text of escapes", partial(repeat, '"' + "\\u0000" * (ROOM // 6 - 2) + '"')),
    bomb(
        "wide-text",
        "a text of one wide letter",
        partial(repeat, '"' + "a" * (ROOM - 20) + '\\ud83d\\ude00"'),
    ),
    bomb("square", "1,800 x 1,800 pixels", partial(square, 1_800)),
    bomb("square-float", "1,200 x 1,200 pixels 7.0", partial(square, 1_200, "7.0")),
    bomb(
        "square-bad",
        "1,800 x 1,800 pixels, a wrong one last",
        partial(lambda: square(1_800)[:-5] + b"x]]]}"),
    ),
    bomb("colours", "[1][800,000][3] pixels", partial(coloured, 800_000)),
    bomb("column", "1,600,000 rows of one pixel", partial(repeat, "[7]")),
    bomb("b64-blank", "b64 of blanks", partial(base64_of, " ")),
    bomb("b64-lines", "b64 of line breaks", partial(base64_of, "\\n")),
    bomb("b64-padding", "b64 of =", partial(base64_of, "=")),
    bomb("b64-letters", "b64 of letters", partial(base64_of, "QUJD")),
    bomb("b64-blocks", "b64 of four letters and a blank", partial(base64_of, "QUJD ")),
    bomb(
        "b64-bad",
        "b64 with one bad letter at the end",
        partial(lambda: base64_of("QUJD")[:-5] + b'*"}]}'),
    ),
    bomb("keys", "500,000 keys", partial(many_keys, True)),
    bomb("keys-same", "500,000 times one key", partial(many_keys, False)),
    bomb("blanks", "6.5 MB of blanks", partial(lambda: b" " * ROOM + b'{"instances":[[[0]]]}')),
    bomb("bom", "a mark and blanks", partial(lambda: b"\xef\xbb\xbf" + b"\n" * ROOM + b"{}")),
    bomb("zeros", "6.5 MB of 00", partial(lambda: bytes(ROOM))),
    bomb("utf-16", "UTF-16", partial(lambda: '{"instances":[[[0]]]}'.encode("utf-16-le") * 9)),
    bomb("pretty", "lists with blanks", partial(repeat, "[ 0 ]")),
    bomb(
        "b64-nested",
        "JSON inside b64",
        partial(
            lambda: (
                b'{"instances":[{"b64":"'
                + base64.b64encode(repeat("[0]", room=4_800_000))
                + b'"}]}'
            )
        ),
    ),
    bomb(
        "infer-flat",
        "1,800 x 1,800 pixels of a tensor",
        partial(lambda: tensor("[1,1800,1800]", "[0" + ",0" * (1_800**2 - 1) + "]")),
    ),
    bomb("infer-column", "999,000 rows of a tensor", partial(column, 999_000)),
    bomb(
        "infer-texts",
        "a million texts of a tensor",
        partial(repeat, '"ab"', '{"inputs":[{"datatype":"BYTES","shape":[1],"data":[', "]}]}"),
    ),
)
