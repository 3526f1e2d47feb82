"""The rebalances of a consumer group, as the broker itself has noted them."""

from __future__ import annotations

import struct

from tests.chaos.brokers.kafka.observer import read_topic

TOPIC = "__consumer_offsets"
GROUP_METADATA_KEY_VERSION = 2  # of a key: the record is about the group, not about an offset


def parse_group_metadata(key: bytes, value: bytes | None) -> tuple[str, int] | None:
    """Return group and generation, if a record of TOPIC is about that.

    GroupMetadataKey and GroupMetadataValue, versions 0 to 3: a short for the version, then
    strings of a short and so many bytes; the generation is the integer behind the protocol's type.
    """
    (kind,) = struct.unpack_from(">h", key)
    if kind != GROUP_METADATA_KEY_VERSION or value is None:
        return None
    (skipped,) = struct.unpack_from(">h", value, 2)
    (generation,) = struct.unpack_from(">i", value, 4 + skipped)
    return key[4:].decode(), generation


def list_generations(servers: str, group: str) -> list[int]:
    """Return each generation that the coordinator has noted for a group, the oldest first.

    It notes one when a rebalance has ended, and numbers them. No compaction comes so soon.
    """
    noted = (
        parse_group_metadata(one.key, one.value)
        for one in read_topic(servers, TOPIC, "read_uncommitted")
    )
    return sorted({generation for name, generation in filter(None, noted) if name == group})
