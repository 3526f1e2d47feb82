"""What the broker itself has noted of a consumer group: its rebalances."""

from __future__ import annotations

import struct

from tools.chaos.watch import whole

TOPIC = "__consumer_offsets"
MEMBERSHIP = 2  # of a key: the record is about the group (GroupMetadataKey), not about an offset


def membership(key: bytes, value: bytes | None) -> tuple[str, int] | None:
    """Group and generation, if a record of TOPIC is about that.

    GroupMetadataKey and GroupMetadataValue, versions 0 to 3: a short for the version, then
    strings of a short and so many bytes; the generation is the integer behind the protocol's type.
    """
    (kind,) = struct.unpack_from(">h", key)
    if kind != MEMBERSHIP or value is None:
        return None
    (skipped,) = struct.unpack_from(">h", value, 2)
    (generation,) = struct.unpack_from(">i", value, 4 + skipped)
    return key[4:].decode(), generation


def generations(servers: str, group: str) -> list[int]:
    """Each generation that the coordinator has noted for a group, the oldest first.

    It notes one when a rebalance has ended, and numbers them. No compaction comes so soon.
    """
    noted = (membership(one.key, one.value) for one in whole(servers, TOPIC, "read_uncommitted"))
    return sorted({generation for name, generation in filter(None, noted) if name == group})
