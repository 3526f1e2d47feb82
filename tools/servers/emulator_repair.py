"""Repair of Google's Pub/Sub emulator 0.8.20, which is not like Pub/Sub when a client is gone.

The emulator does not notice that. Its jar holds the gRPC of 1.68.1, which calls
`InternalStatus.asRuntimeException(Status, Metadata, boolean)` when a stream is cancelled or its
connection breaks, and the InternalStatus of a later one, which has no such method. So the server
dies in the middle of closing, goes on sending to streams that nobody reads, and an ordering key
whose reader is gone never comes again. The grpc-api of 1.68.1 goes in front of it on the class
path.

When it does notice, it forgets too soon. When a stream ends, its ordering keys are free at once:
another stream gets their later messages while the earlier ones are still leased. The service sends
a key to one subscriber as long as messages of it are outstanding there, that is until they are
acknowledged or their leases have run out
(https://medium.com/google-cloud/google-cloud-pub-sub-ordered-delivery-1e4181f60bc8, "affinity").
The emulator would do so, too, did it not forget whose the key was: a copy of that one class
remembers.
"""

from __future__ import annotations

import re
import zipfile
from typing import TYPE_CHECKING

from tools.servers.jars import fetch_jars
from tools.servers.process import ROOT, StackError

if TYPE_CHECKING:
    from pathlib import Path

POM = ROOT / "tools" / "pubsub" / "pom.xml"
BUILD = ROOT / "build" / "pubsub"

STATUS = "io/grpc/InternalStatus.class"
BACKLOG = "com/google/cloud/pubsub/testing/v1/OrderedMessageBacklog.class"


def build_command(program: Path, folder: Path) -> list[str]:
    """How to start the emulator `program`; `folder` takes the repaired class, if one is needed."""
    for jar in program.resolve().parent.parent.glob("lib/cloud-pubsub-emulator-*-all.jar"):
        with zipfile.ZipFile(jar) as content:
            manifest = content.read("META-INF/MANIFEST.MF").decode()
            status, backlog = content.read(STATUS), content.read(BACKLOG)
        main = re.search(r"^Main-Class: (\S+)", manifest, re.MULTILINE)
        if main and is_too_new(status):
            target = folder / "repaired" / BACKLOG
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(patch_backlog(backlog))
            path = [str(folder / "repaired"), f"{fetch_jars(POM, BUILD)}/*", str(jar)]
            return ["java", "-cp", ":".join(path), main[1]]
    return [str(program)]


def is_too_new(status: bytes) -> bool:
    """Say whether this InternalStatus has the later method, and not the one that is called."""
    return b"asRuntimeExceptionWithoutStacktrace" in status


def patch_backlog(code: bytes) -> bytes:
    """The backlog without `iterator.remove()` at the end of the loop of onStreamingPullCompleted.

    It is looked for at this place only: aload_3, invokeinterface (5 bytes), goto 46 bytes back.
    """
    forgets = re.compile(rb"\x2d\xb9..\x01\x00(?=\xa7\xff\xd2)", re.DOTALL)
    remembers, count = forgets.subn(bytes(6), code)  # nop is 0
    if count != 1:
        raise StackError(
            f"this emulator is not the one that is known here: {count} places to repair"
        )
    return remembers
