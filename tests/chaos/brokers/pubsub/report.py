"""The report of a case on Pub/Sub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tests.chaos.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(kw_only=True)
class PubSubReport(Report):
    """What happened. `doubled`: outcomes that repeat one; `asked`: images, repeated ones too.

    More is asked again than doubled when relays die before they publish; more is doubled when the
    answer to a request to publish is lost, and the request repeated.
    """

    promise: ClassVar = "at least once"

    case: str
    doubled: int
    asked: int
    asked_again: int

    def _find_missing(self) -> Iterator[str]:
        yield from super()._find_missing()
        if self.wanted.get("relay killed") and not self.asked_again:
            yield "the kills found no relay at work: nothing was asked again"

    def _list_rows(self) -> Iterator[tuple[str, object]]:
        yield "case", self.case
        yield f"messages asked again (of {self.asked:,} images)", f"{self.asked_again:,}"
        yield "doubled, with equal ids", f"{self.doubled:,}"
        yield from super()._list_rows()
