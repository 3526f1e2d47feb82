"""All bombs: small requests that are dear to answer, by format and by how they are sent.

`BOMBS` are all of them, `ROWS` those that stand in the report of abuse, one for each row, and
`SELECTION` the few that run with each build.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tests.handler import (
    bombs_gif_bmp,
    bombs_jpeg,
    bombs_json,
    bombs_png,
    bombs_tiff,
    bombs_webp,
)
from tests.handler.bomb import Bomb, in_json

if TYPE_CHECKING:
    from collections.abc import Callable

FILES: dict[str, Bomb] = {
    bomb.key: bomb
    for module in (bombs_png, bombs_jpeg, bombs_gif_bmp, bombs_webp, bombs_tiff)
    for bomb in module.BOMBS
}


def several(key: str, copies: int, row: str = "") -> Bomb:
    """Return the file of a bomb several times in one multipart body."""
    one = FILES[key]
    name = f"{copies} parts, each {one.name}"
    return replace(one, key=f"{key}-x{copies}", name=name, copies=copies, row=row)


def wrapped(key: str, times: int, row: str = "") -> Bomb:
    """Return the file of a bomb several times in JSON, as Base64."""
    one = FILES[key]
    name = f"JSON of {times} times {one.name}"
    make = partial(wrap, one.make, times)
    return Bomb(f"{key}-json{times}", name, make, "application/json", row=row)


def wrap(make: Callable[[], bytes], times: int) -> bytes:
    """Return the JSON body of a file, made when it is asked for."""
    return in_json(make(), times)


SEVERAL = (
    several("bmp-rle8-wide", 4, "H1"),
    wrapped("bmp-rle8-wide", 4, "H1"),
    several("bmp-rle4-square", 4),
    several("bmp-rle8-999k", 100),
    several("bmp-rle8-999k", 1000),
    several("bmp-rle8-small", 100),
    several("bmp-big", 2),
    several("bmp-colours-none", 1000),
    several("jpeg-scans-200", 90),
    several("jpeg-scans-64", 120),
    several("jpeg-scans-10-colour", 40),
    wrapped("jpeg-scans-64", 60),
    several("jpeg-exif-tags", 90),
    several("jpeg-sampling-44", 3),
    several("jpeg-mpf", 1000),
    several("png-rgba-16", 4),
    several("png-rgba-12", 8),
    several("png-interlaced", 4),
    several("png-palette-holes", 4),
    several("png-key-16", 4),
    several("png-no-plte", 1000),
    wrapped("png-no-plte", 1000),
    several("gif-big", 4),
    several("gif-interlaced", 4),
    several("gif-screen-25", 4),
    several("gif-screen-25", 1000),
    several("gif-frame-larger", 4),
    several("gif-no-palette", 1000),
    wrapped("webp-big", 4),
    several("webp-largest", 1000),
    several("webp-groups", 12),
    several("webp-groups-16k", 60),
    several("webp-groups-4k", 340),
    several("webp-groups-256", 1024),
    several("png-thin", 1024),
    several("png-thin-16", 1024),
    several("jpeg-thin", 510),
    several("jpeg-scans-400", 2),
    several("tiff-1-scans-rows", 15),
    several("webp-lossy", 4),
    several("webp-alpha-empty", 1000),
    several("tiff-deflate", 4),
    several("tiff-rgba-16-12", 8),
    several("tiff-float-12", 8),
    several("tiff-jpeg-scans", 12),
    several("tiff-tile-5000", 100),
    several("tiff-tag-longs", 1000),
    several("tiff-cyclic", 1000),
    several("tiff-palette", 1000),
    several("tiff-packbits", 12),
)
BOMBS: tuple[Bomb, ...] = (*FILES.values(), *bombs_json.BOMBS, *SEVERAL)
ROWS = tuple(bomb for bomb in BOMBS if bomb.row)

QUICK = (
    "bmp-rle8-wide bmp-rle8-wide-x4 bmp-rle4-square bmp-rle8-999k-x100 jpeg-scans-2500 "
    "jpeg-scans-22643 jpeg-scans-64-x120 jpeg-fill jpeg-app jpeg-exif-pieces png-iccp "
    "png-private-after png-overflow png-rgba-16 png-no-plte png-rgba-12-x8 gif-comment gif-junk "
    "gif-frames gif-screen-25-x1000 webp-four webp-groups webp-frames tiff-strips tiff-tile-huge "
    "tiff-tags-overlap tiff-jpeg-scans tiff-tile-5000-x100 json-lists json-lists-nested "
    "json-dicts json-b64-blank json-infer-column webp-groups-16k-x60 png-thin-x1024"
)
SELECTION = tuple(bomb for bomb in BOMBS if bomb.key in QUICK.split())


def find_bomb(key: str) -> Bomb:
    """Return the bomb of this key; StopIteration where there is none."""
    return next(bomb for bomb in BOMBS if bomb.key == key)
