"""Changes to files, drawn from a generator of random numbers: the same seed, the same input."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests import formats
from tests.encoders import BmpHeader, bmp, gif, gif_frame, jpeg_segment, png, png_chunk
from tests.fuzz.structure import Part, join, split

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ENDINGS = {
    "png": (".png",),
    "jpeg": (".jpg",),
    "gif": (".gif",),
    "bmp": (".bmp",),
    "webp": (".webp",),
    "tiff": (".tif",),
}
FILES = tuple(ENDINGS)
FORMATS = (*FILES, "json", "multipart", "infer")

BOUNDARIES = {
    1: (0, 1, 2, 3, 4, 8, 16, 127, 128, 254, 255),
    2: (0, 1, 2, 255, 256, 1000, 5000, 32767, 32768, 65500, 65501, 65535),
    4: (0, 1, 255, 65535, 65536, 1_000_001, 25_000_001, 2**31 - 1, 2**31, 2**32 - 1),
}
MAX_LENGTH = 60_000
"""Bytes of an input, but for those of a bomb."""

MAX_LEAVES = 64
"""Of a tree of lists."""

Request = tuple[dict[str, Any], dict[str, Any]]
"""row and headers, as TorchServe hands them over."""


class Seeds:
    """The files of the corpus, by format."""

    def __init__(self) -> None:
        good = {line["file"] for line in formats.read_manifest() if "picture" in line}
        self.files = {
            name: self._read(endings, good, only_good=False) for name, endings in ENDINGS.items()
        }
        self.good = {
            name: self._read(endings, good, only_good=True) for name, endings in ENDINGS.items()
        }

    def _read(self, endings: tuple[str, ...], good: set[str], *, only_good: bool) -> list[bytes]:
        paths = sorted(path for path in formats.FOLDER.iterdir() if path.suffix in endings)
        return [path.read_bytes() for path in paths if path.name in good or not only_good]

    def choose(self, name: str, random: Random) -> bytes:
        """Return a file, mostly a good one."""
        return random.choice((self.good if random.random() < 0.8 else self.files)[name])


def mutate_file(name: str, seeds: Seeds, random: Random) -> bytes:
    """Return a file of a format that was changed once to four times, or a bomb."""
    if random.random() < 0.005:
        return random.choice(BOMBS[name])(random)
    data = seeds.choose(name, random)
    for _ in range(random.choice((1, 1, 2, 4))):
        repair = random.random() < 0.5
        other = seeds.choose(name, random)
        data = random.choice(CHANGES)(data, other, random, repair)
    return data[:MAX_LENGTH]


def change_parts(data: bytes, other: bytes, random: Random, repair: bool) -> bytes:  # noqa: FBT001 - one signature for all
    """Change the list of parts: double, drop, move or multiply one, or take one from elsewhere."""
    parts = split(data)
    place = random.randrange(len(parts))
    part = parts[place]
    action = random.randrange(5)
    if action == 0:
        parts.insert(place, part)
    elif action == 1:
        parts.pop(place)
    elif action == 2:
        parts.insert(random.randrange(len(parts)), parts.pop(place))
    elif action == 3:
        parts[place:place] = [part] * random.choice((2, 10, 100))
    else:
        parts.insert(place, random.choice(split(other)))
    return join(parts, repair=repair)


def change_body(data: bytes, _: bytes, random: Random, repair: bool) -> bytes:  # noqa: FBT001 - one signature for all
    """Change one part inside: a field gets a boundary value, bits flip, bytes come or go."""
    parts = split(data)
    place = random.randrange(len(parts))
    part = parts[place]
    parts[place] = part.change(change_bytes(part, random), repair=repair)
    return join(parts, repair=repair)


def change_bytes(part: Part, random: Random) -> bytes:
    """Return another body for a part."""
    body = bytearray(part.body or b"\0")
    action = random.randrange(5)
    place = random.randrange(len(body))
    if action == 0:
        body[place] ^= 1 << random.randrange(8)
    elif action == 1:
        width = random.choice((1, 2, 4))
        value = random.choice(BOUNDARIES[width])
        body[place : place + width] = value.to_bytes(width, random.choice(("little", "big")))
    elif action == 2:
        body[place:place] = random.randbytes(random.choice((1, 4, 300)))
    elif action == 3:
        del body[place : place + random.choice((1, 4, 50))]
    else:
        body[place : place + 8] = body[:8]
    return bytes(body)


def unpack_and_pack(data: bytes, _: bytes, random: Random, repair: bool) -> bytes:  # noqa: FBT001 - one signature for all
    """Change the pixels of a PNG before they are packed; another format gets one byte changed."""
    parts = split(data)
    for place, part in enumerate(parts):
        if part.head == b"IDAT":
            raw = bytearray(inflate(part.body) or b"\0")
            raw[random.randrange(len(raw))] = random.choice(BOUNDARIES[1])
            parts[place] = part.change(zlib.compress(bytes(raw)), repair=repair)
            return join(parts, repair=repair)
    place = random.randrange(len(data) or 1)
    return data[:place] + random.randbytes(1) + data[place + 1 :]


def inflate(data: bytes) -> bytes:
    """Return at most 100,000 bytes; none of damaged ones."""
    try:
        return zlib.decompressobj().decompress(data, 100_000)
    except zlib.error:
        return b""


def cut_or_extend(data: bytes, other: bytes, random: Random, _: bool) -> bytes:  # noqa: FBT001 - one signature for all
    """Cut the end off, go on with zeros, or with the end of another file."""
    place = random.randrange(len(data) + 1)
    tail = random.choice((b"", bytes(2_000), other[place:], b"\xff" * 2_000))
    return (data[:place] if random.randrange(2) else data) + tail


CHANGES = (change_parts, change_body, change_body, unpack_and_pack, cut_or_extend)


def bomb_png_chunks(random: Random) -> bytes:
    """Return a PNG of very many chunks."""
    chunk = png_chunk(random.choice((b"prVt", b"tEXt", b"IDAT")), b"")
    return png(formats.RAMP, before=chunk * random.choice((1_000, 30_000, 200_000)))


def bomb_png_profiles(random: Random) -> bytes:
    """Return a PNG of metadata that unfold."""
    profile = b"icc\0\0" + zlib.compress(bytes(1_000_000), 9)
    chunk = png_chunk(random.choice((b"iCCP", b"zTXt", b"iTXt")), profile)
    return png(formats.RAMP, before=chunk * random.choice((10, 500)))


def bomb_jpeg_scans(random: Random) -> bytes:
    """Return a JPEG of many scans over many pixels."""
    scans, side = random.choice((10, 500, 5_000)), random.choice((500, 5_000))
    return formats.progressive_bomb(scans, side=side)


def bomb_jpeg_segments(random: Random) -> bytes:
    """Return a JPEG of very many segments or fill bytes."""
    filling = random.choice((b"\xff", jpeg_segment(0xE5, b""), jpeg_segment(0xDB, b"")))
    return formats.jpeg(extra=filling * random.choice((1_000, 100_000, 1_000_000)))


def bomb_gif_blocks(random: Random) -> bytes:
    """Return a GIF of very many extensions, or of a large screen."""
    count, size = random.choice((0, 30_000, 500_000)), random.choice((28, 5_000, 65_535))
    frame = gif_frame(formats.RAMP)[:-1] + b"\1\0" * random.choice((0, 200_000)) + b"\0"
    return gif(formats.PALETTE, b"!\xfe\0" * count + frame, (size, size))


def bomb_bmp_runs(random: Random) -> bytes:
    """Return a run-length BMP of many pixels and few bytes."""
    width, height = random.choice(((25_000_000, 1), (5_000, 5_000), (1_000, 1_000), (1, 60_000)))
    header = BmpHeader(8, 1, palette=formats.grey_quads(256))
    return bmp(header, width, height, b"\1\1\0\0" * random.choice((1, 5_000)))


def bomb_webp_canvas(random: Random) -> bytes:
    """Return a lossless WebP of one colour and many pixels, with or without alpha."""
    return solid_webp(random.choice(("RGB", "RGBA")), random.choice((500, 2_000, 5_000)))


@cache
def solid_webp(mode: str, side: int) -> bytes:
    """Return a lossless WebP of one colour; made once, for it takes its time."""
    body = io.BytesIO()
    Image.new(mode, (side, side), 7).save(body, "WEBP", lossless=True, method=0)
    return body.getvalue()


def bomb_tiff_pieces(random: Random) -> bytes:
    """Return a TIFF of many strips, large tiles, many samples or many tags."""
    tags = random.choice(
        (
            {256: (4, [1]), 257: (4, [1_000_000]), 278: (4, [1_000_000])},
            {256: (4, [1_000]), 257: (4, [1_000]), 322: (4, [1]), 323: (4, [1])},
            {322: (4, [60_000]), 323: (4, [60_000])},
            {277: (3, [60_000])},
            {256: (4, [3_400]), 257: (4, [3_400])},
            {number: (3, [1]) for number in range(1_000, 6_000)},
        )
    )
    return formats.tiff(formats.RAW, dict(tags))


BOMBS: dict[str, tuple[Callable[[Random], bytes], ...]] = {
    "png": (bomb_png_chunks, bomb_png_profiles),
    "jpeg": (bomb_jpeg_scans, bomb_jpeg_segments),
    "gif": (bomb_gif_blocks,),
    "bmp": (bomb_bmp_runs,),
    "webp": (bomb_webp_canvas,),
    "tiff": (bomb_tiff_pieces,),
}

INFER_HEADERS = ("Inference-Header-Content-Length", "inference-header-content-length")
JSON_HEADERS = {"body": {"content-type": "application/json"}}
LEAVES: tuple[Any, ...] = (
    0,
    7,
    255,
    256,
    -1,
    1.0,
    0.5,
    True,
    None,
    "x",
    10**400,
    1e308,
    [],
    {},
    [[]],
    [0],
)
INFER_LEAVES = (*LEAVES, *BOUNDARIES[4], 2**64, 10**30, -(2**63), "BYTES", "UINT8", "FP32")


def make_json(seeds: Seeds, random: Random) -> Request:
    """Return a request of JSON: files as Base64, pixels as lists, or what is neither."""
    instances: Any = [make_instance(seeds, random) for _ in range(random.choice((1, 1, 2, 20)))]
    value: Any = {"instances": instances}
    if random.random() < 0.1:
        value = random.choice((instances, {"instances": {}}, {"inputs": 1}, make_nest(random)))
    body = json.dumps(value).encode()
    if random.random() < 0.1:
        place = random.randrange(len(body))
        body = body[:place] + random.randbytes(2) + body[place + random.randrange(3) :]
    lead = random.choice((b"", b"", b"\xef\xbb\xbf", b" \n"))
    return {"body": lead + body}, JSON_HEADERS if random.randrange(2) else {}


def make_instance(seeds: Seeds, random: Random) -> Any:  # noqa: ANN401 - JSON is anything
    """Return one instance of any kind."""
    kind = random.randrange(6)
    if kind < 2:
        data = mutate_file(random.choice(FILES), seeds, random)[:20_000]
        return {"b64": base64.b64encode(data).decode()}
    if kind == 2:
        return {"b64": random.choice(LEAVES)}
    if kind == 3:
        return make_nest(random)
    return make_pixels(random)


def make_pixels(random: Random) -> Any:  # noqa: ANN401 - JSON is anything
    """Return lists of pixels, sometimes with a leaf that is none, or a ragged row."""
    height, width = random.choice((1, 2, 28)), random.choice((1, 3, 28))
    rows: list[Any] = [[random.randrange(256) for _ in range(width)] for _ in range(height)]
    if random.random() < 0.3:
        rows[random.randrange(height)][random.randrange(width)] = random.choice(LEAVES)
    if random.random() < 0.1:
        rows[random.randrange(height)] = random.choice(LEAVES)
    return [rows] * random.choice((1, 3, 4)) if random.random() < 0.3 else rows


def make_nest(random: Random) -> Any:  # noqa: ANN401 - JSON is anything
    """Return a deep or a wide tree."""
    if random.random() < 0.2:
        return [[]] * random.choice((1, 2_000))
    value: Any = random.choice(LEAVES)
    leaves = 1
    for _ in range(random.choice((1, 4, 64, 400))):
        width = random.choice((1, 1, 1, 2)) if leaves < MAX_LEAVES else 1
        value, leaves = [value] * width, leaves * width
    return value


def make_multipart(seeds: Seeds, random: Random) -> Request:
    """Return a request of parts, as TorchServe hands it over."""
    names = random.sample(("a", "b", "body", "content-type", "Content-Type", "", "ü" * 40), 3)
    row: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    if random.random() < 0.9:
        headers["Content-Type"] = "multipart/form-data; boundary=x"
    for name in names[: random.choice((1, 2, 3))]:
        row[name] = mutate_file(random.choice(FILES), seeds, random)[:20_000]
        kind = random.choice(("", "image/png", "application/json", "text/plain", "multipart/mixed"))
        if name != "Content-Type":
            headers[name] = {"content-type": kind}
    if random.random() < 0.05:
        row[names[0]] = random.choice(("text", "", {}, [1], 3, None))
    return row, headers


def make_infer(seeds: Seeds, random: Random) -> Request:
    """Return a request of the Open Inference Protocol: right, then perhaps changed in one place."""
    make_tensor = random.choice((make_bytes, make_bytes, make_uint8))
    tensor, behind = make_tensor(seeds, random)
    document: dict[str, Any] = {"inputs": [tensor], **make_options(random)}
    if random.random() < 0.4:
        spoil(random.choice((document, tensor, tensor)), random)
    head = json.dumps(document).encode()
    if not behind and random.random() < 0.7:
        return {"body": head}, JSON_HEADERS
    length: object = len(head)
    if random.random() < 0.1:
        length = random.choice((0, len(head) - 1, len(head) + len(behind), 10**30, "-1", "x"))
    if random.random() < 0.1:
        behind = change_body(behind, b"", random, False) if behind else b"\0"
    return {"body": head + behind}, {random.choice(INFER_HEADERS): str(length)}


def make_bytes(seeds: Seeds, random: Random) -> tuple[dict[str, Any], bytes]:
    """Return an input of image files and what follows the JSON, in either form."""
    count = random.choice((1, 1, 2, 8))
    files = [mutate_file(random.choice(FILES), seeds, random)[:20_000] for _ in range(count)]
    shape = random.choice(([count], [count, 1]))
    tensor: dict[str, Any] = {"name": "images", "datatype": "BYTES", "shape": shape}
    if random.randrange(2):
        tensor["data"] = [base64.b64encode(data).decode() for data in files]
        return tensor, b""
    lengths = [len(data) for data in files]
    if random.random() < 0.1:
        lengths[random.randrange(count)] = random.choice(BOUNDARIES[4])
    behind = b"".join(
        struct.pack("<I", length) + data for length, data in zip(lengths, files, strict=True)
    )
    tensor["parameters"] = {"binary_data_size": len(behind)}
    return tensor, behind


def make_uint8(_: Seeds, random: Random) -> tuple[dict[str, Any], bytes]:
    """Return an input of pixels and what follows the JSON, in either form."""
    count, height, width = (random.choice((1, 2, 28)) for _ in range(3))
    channels = random.choice((1, 1, 2, 3, 4))
    shape, depth = random.choice(
        (
            ([count, height, width], 1),
            ([count, channels, height, width], channels),
            ([count, height, width, channels], channels),
        )
    )
    pixels = random.randbytes(count * height * width * depth)
    tensor: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": shape}
    if random.randrange(2):
        tensor["data"] = list(pixels)
        return tensor, b""
    tensor["parameters"] = {"binary_data_size": len(pixels)}
    return tensor, pixels


def make_options(random: Random) -> dict[str, Any]:
    """Return what a request may say beside its input."""
    names = random.sample(("label", "score", "class", "error"), random.randrange(5))
    options: dict[str, Any] = {
        "id": "7",
        "parameters": {"top": random.choice((1, 3, 10**30)), "binary_data_output": True},
        "outputs": [{"name": name} for name in names],
    }
    return {key: options[key] for key in random.sample(sorted(options), random.randrange(4))}


def spoil(thing: dict[str, Any], random: Random) -> None:
    """Change one value of a request or an input, or one element of it, into what is none."""
    key = random.choice(sorted(thing))
    value = thing[key]
    if isinstance(value, list) and value and random.random() < 0.7:
        value[random.randrange(len(value))] = random.choice(INFER_LEAVES)
    elif isinstance(value, dict) and value and random.random() < 0.7:
        value[random.choice(sorted(value))] = random.choice(INFER_LEAVES)
    else:
        thing[key] = random.choice((*INFER_LEAVES, make_nest(random)))


def make_request(name: str, seeds: Seeds, random: Random) -> Request:
    """Return an input of a format."""
    if name == "json":
        return make_json(seeds, random)
    if name == "multipart":
        return make_multipart(seeds, random)
    if name == "infer":
        return make_infer(seeds, random)
    return {"body": mutate_file(name, seeds, random)}, {}
