"""Google's Pub/Sub emulator 0.8.20 is not like Pub/Sub when a client is gone; this mends it.

It does not notice. Its jar holds a gRPC that calls
`InternalStatus.asRuntimeException(Status, Metadata, boolean)` when a stream is cancelled or its
connection breaks, and an InternalStatus without that method (grpc-java renamed it). So the server
dies in the middle of closing, goes on sending to streams that nobody reads, and an ordering key
whose reader is gone never comes again. A copy of that one class, made from the jar's own with the
method added, goes in front of it on the class path.

And what it notices it takes too lightly. When a stream ends, its ordering keys are free at once:
another stream gets their later messages while the earlier ones are still leased. The service sends
a key to one subscriber as long as messages of it are outstanding there, that is until they are
acknowledged or their leases have run out
(https://medium.com/google-cloud/google-cloud-pub-sub-ordered-delivery-1e4181f60bc8, "affinity").
The emulator would do so, too, did it not forget whose the key was: the copy of a second class
remembers.
"""

from __future__ import annotations

import re
import struct
import zipfile
from typing import TYPE_CHECKING

from tools.stack import StackError

if TYPE_CHECKING:
    from pathlib import Path

STATUS = "io/grpc/InternalStatus.class"
BACKLOG = "com/google/cloud/pubsub/testing/v1/OrderedMessageBacklog.class"
MISSING = b"asRuntimeException"
THERE = b"asRuntimeExceptionWithoutStacktrace"
RETURNS = b"Lio/grpc/StatusRuntimeException;"
ENTRY = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 15: 3, 16: 2, 19: 2, 20: 2}
"""Bytes of each kind of constant (JVM specification, 4.4); 4 where nothing is said."""

WIDE = {5, 6}
"""Kinds that count twice."""


def command(program: Path, folder: Path) -> list[str]:
    """How to start the emulator `program`; `folder` takes the mended class, if one is needed."""
    for jar in program.resolve().parent.parent.glob("lib/cloud-pubsub-emulator-*-all.jar"):
        with zipfile.ZipFile(jar) as content:
            manifest = content.read("META-INF/MANIFEST.MF").decode()
            found = {name: content.read(name) for name in (STATUS, BACKLOG)}
        main = re.search(r"^Main-Class: (\S+)", manifest, re.MULTILINE)
        if main and lacks(found[STATUS]):
            _write(folder / "mended" / STATUS, mended(found[STATUS]))
            _write(folder / "mended" / BACKLOG, remembering(found[BACKLOG]))
            return ["java", "-cp", f"{folder / 'mended'}:{jar}", main[1]]
    return [str(program)]


def _write(target: Path, code: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(code)


def remembering(code: bytes) -> bytes:
    """The backlog without `iterator.remove()` at the end of the loop of onStreamingPullCompleted.

    It is asked for at this place only: aload_3, invokeinterface (5 bytes), goto 46 bytes back.
    """
    forgets = re.compile(rb"\x2d\xb9..\x01\x00(?=\xa7\xff\xd2)", re.DOTALL)
    remembers, count = forgets.subn(bytes(6), code)  # nop is 0
    if count != 1:
        raise StackError(f"this emulator is not the one that is known here: {count} places to mend")
    return remembers


def lacks(code: bytes) -> bool:
    """Say whether this InternalStatus has the new method and not the old one."""
    names, _ = _pool(code)
    return THERE in names and MISSING not in names


def mended(code: bytes) -> bytes:
    """The class with the old method, which calls the new one (JVM specification, 4.1 and 4.6)."""
    names, end = _pool(code)
    count = int.from_bytes(code[8:10], "big")
    this = int.from_bytes(code[end + 2 : end + 4], "big")
    name, kind, called, called_kind, name_and_type, method = range(count, count + 6)
    constants = [
        _utf8(MISSING),
        _utf8(b"(Lio/grpc/Status;Lio/grpc/Metadata;Z)" + RETURNS),
        _utf8(THERE),
        _utf8(b"(Lio/grpc/Status;Lio/grpc/Metadata;)" + RETURNS),
        struct.pack(">BHH", 12, called, called_kind),
        struct.pack(">BHH", 10, this, name_and_type),
    ]
    # aload_0, aload_1, invokestatic, areturn; two on the stack, three arguments
    body = struct.pack(">HHI2BBHB", 2, 3, 6, 0x2A, 0x2B, 0xB8, method, 0xB0) + bytes(4)
    added = struct.pack(">4HHI", 0x0009, name, kind, 1, names.index(b"Code"), len(body)) + body
    methods = _after_fields(code, end)
    number = int.from_bytes(code[methods : methods + 2], "big") + 1
    return b"".join(
        [
            code[:8],
            struct.pack(">H", count + len(constants)),
            code[10:end],
            *constants,
            code[end:methods],
            struct.pack(">H", number),
            added,
            code[methods + 2 :],
        ]
    )


def _utf8(text: bytes) -> bytes:
    return struct.pack(">BH", 1, len(text)) + text


def _pool(code: bytes) -> tuple[list[bytes], int]:
    """The texts of the constant pool, at their indices, and where the pool ends."""
    texts, at = [b""], 10
    while len(texts) < int.from_bytes(code[8:10], "big"):
        tag = code[at]
        size = 2 + int.from_bytes(code[at + 1 : at + 3], "big") if tag == 1 else ENTRY.get(tag, 4)
        texts += [code[at + 3 : at + 1 + size] if tag == 1 else b""] + [b""] * (tag in WIDE)
        at += 1 + size
    return texts, at


def _after_fields(code: bytes, at: int) -> int:
    """Where the count of methods stands."""

    def short(where: int) -> int:
        return int.from_bytes(code[where : where + 2], "big")

    at += 8 + 2 * short(at + 6)  # access, this, super, interfaces
    fields, at = short(at), at + 2
    for _ in range(fields):
        attributes, at = short(at + 6), at + 8
        for _ in range(attributes):
            at += 6 + int.from_bytes(code[at + 2 : at + 6], "big")
    return at
