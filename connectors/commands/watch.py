"""Serve a live page of what the daemons do: lag, rates, latency, the newest images, dead letters.

One thread, the main one, reads topics and keeps the state (`live_view`). After each round it
publishes one frozen `Snapshot`; the threads of the server only read that, and a viewer who is too
slow for one misses it. Nothing is written to the broker.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from threading import BoundedSemaphore, Condition
from typing import TYPE_CHECKING, ClassVar

from ..description import make_baseline_finder
from ..page_server import Page, PageHandler, run_server
from ..tls import is_loopback
from .live_view import LiveView

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..drift import Baseline
    from ..records import Watcher
    from ..verbs import LivePage
    from .live_view import StoredImage

ROUND = 1.0
"""Seconds between two snapshots."""

MAX_READS = 20
"""Looks at the topics in one round: what comes in faster is read in the next."""

MEASURE_INTERVAL = 2.0
"""Seconds between two questions how far the group is."""

MAX_STREAMS = 8
"""Viewers at once; the others of the server's threads are for their images."""

STREAM_SECONDS = 120.0
"""Seconds that one stream lasts; the browser then opens the next one by itself."""

STREAM_TIMEOUT = 2 * ROUND
"""Seconds to wait for a stream that ends: who has gone is noticed with the next snapshot."""

KEEP_ALIVE = 10.0
"""Seconds without a snapshot after which a stream says that it is there."""

FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""By path: the file in connectors/live_page, and its type."""

_COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HEADERS = {
    **_COMMON,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
"""Of every answer: nothing from elsewhere, no script in the page, nobody's frame."""

IMAGE_HEADERS = {**_COMMON, "Content-Security-Policy": "default-src 'none'; sandbox"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The page at one moment; never changed, only replaced."""

    number: int = 0
    document: bytes = b"{}"
    images: Mapping[int, StoredImage] = field(default_factory=dict)


class Feed:
    """Hands the latest snapshot from the main thread to the threads of the server."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._latest = Snapshot()
        self._closed = False

    @property
    def latest(self) -> Snapshot:
        """What was published last."""
        return self._latest

    def publish(self, document: bytes, images: Mapping[int, StoredImage]) -> None:
        """Replace the snapshot, and wake who waits for one."""
        with self._changed:
            self._latest = Snapshot(self._latest.number + 1, document, images)
            self._changed.notify_all()

    def close(self) -> None:
        """Let all streams end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self, number: int, timeout: float) -> Snapshot | None:
        """Return the latest snapshot, waiting for another than `number`; None: the feed ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._latest.number != number, timeout)
            return None if self._closed else self._latest


class Asked:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.to_stop = False

    def stop(self) -> None:
        """Ask; called by a signal's handler, so an assignment only."""
        self.to_stop = True


def watch(settings: LivePage, watcher: Watcher, asked: Asked) -> None:
    """Serve the page until asked to stop."""
    view = LiveView(settings.describe_page(), time.time())
    feed = Feed()
    handler = make_handler(feed, settings.page_address)
    with (
        closing(watcher),
        run_server(settings.page_address, settings.page_port, handler, "page") as port,
        closing(feed),
    ):
        announce(settings.page_address, port)
        clock = time.monotonic
        find_baseline = make_baseline_finder(settings.baseline_url, None, clock)
        rounds = Rounds(view, watcher, feed, clock, time.time, find_baseline)
        while not asked.to_stop:
            time.sleep(rounds.run())


def announce(address: str, port: int) -> None:
    """Say where the page is, and who may see it."""
    host = f"[{address}]" if ":" in address else address
    sys.stdout.write(f"live page: http://{host}:{port}/ (Ctrl-C ends it)\n")
    sys.stdout.flush()
    if not is_loopback(address):
        _log.warning("Whoever reaches port %d sees images and labels, without a password.", port)


class Rounds:
    """Reads, measures and publishes, once in ROUND seconds.

    `clock`: monotonic seconds; `wall`: seconds since the epoch. `find_baseline` returns that of a
    model, or None; it never waits.
    """

    def __init__(
        self,
        view: LiveView,
        watcher: Watcher,
        feed: Feed,
        clock: Callable[[], float],
        wall: Callable[[], float],
        find_baseline: Callable[[str], Baseline | None] = lambda _: None,
    ) -> None:
        self._view, self._watcher, self._feed = view, watcher, feed
        self._clock, self._wall = clock, wall
        self._find_baseline = find_baseline
        self._measure_at = clock()

    def run(self) -> float:
        """Do all of one round; return how many seconds are left of it."""
        end = self._clock() + ROUND
        if self._clock() >= self._measure_at:
            self._view.note_progress(self._watcher.measure())
            self._measure_at = self._clock() + MEASURE_INTERVAL
        self._read(end)
        if wanted := self._view.take_picked():
            self._view.add_images(self._watcher.fetch(wanted))
        self._view.note_baseline(self._find_baseline(self._view.model))
        self._view.note_trouble(self._watcher.trouble())
        self._feed.publish(self._view.render(self._wall()), self._view.images())
        return max(0.0, end - self._clock())

    def _read(self, end: float) -> None:
        """Read until nothing more comes, or most of the round is over."""
        for _ in range(MAX_READS):
            sightings = self._watcher.read(ROUND / 4)
            self._view.see(sightings, self._wall())
            if not sightings or self._clock() >= end - ROUND / 4:
                return


# The server


class LivePageHandler(PageHandler):
    """Answers for one feed.

    `is_local`: it is bound to a loopback address, and answers to no other host. Else a foreign page
    could give its own name our address, and read along (DNS rebinding).
    """

    server_version, sys_version = "connectors", ""
    feed: ClassVar[Feed]
    streams: ClassVar[BoundedSemaphore]
    is_local: ClassVar[bool]

    def answer(self, path: str) -> None:
        """Answer what was asked of this path."""
        if self.is_local and not is_local_host(self.headers.get("Host", "")):
            self._refuse(421, "ask for localhost, or give --page-address")
        elif path in FILES:
            self.send_page(read_file(path), HEADERS)
        elif path == "/events":
            self._stream_or_refuse()
        elif found := re.fullmatch(r"/image/([0-9]{1,18})", path):
            self._send_image(int(found[1]))
        else:
            self._refuse(404, "there is no such page")

    def _refuse(self, status: int, why: str) -> None:
        page = Page(status, "text/plain; charset=utf-8", f"{why}\n".encode())
        self.send_page(page, HEADERS)

    def _send_image(self, number: int) -> None:
        image = self.feed.latest.images.get(number)
        if image is None:
            self._refuse(404, "the image has left the page")
        else:
            self.send_page(Page(200, image.content_type, image.data), IMAGE_HEADERS)

    def _stream_or_refuse(self) -> None:
        if not self.streams.acquire(timeout=STREAM_TIMEOUT):
            self._refuse(503, f"{MAX_STREAMS} are looking already")
            return
        try:
            self._stream()
        finally:
            self.streams.release()

    def _stream(self) -> None:
        """Send the snapshots as they come, each at most once, until a write takes too long."""
        self.extend(STREAM_SECONDS)
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", **HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"retry: 1000\n\n")
        number = 0
        while snapshot := self.feed.wait(number, KEEP_ALIVE):
            is_new, number = snapshot.number != number, snapshot.number
            self.wfile.write(b"data: %b\n\n" % snapshot.document if is_new else b": wait\n\n")


def make_handler(feed: Feed, address: str) -> type[PageHandler]:
    """Make what answers for one feed at one address."""

    class Handler(LivePageHandler):
        """For this feed."""

    Handler.feed = feed
    Handler.streams = BoundedSemaphore(MAX_STREAMS)
    Handler.is_local = is_loopback(address)
    return Handler


def is_local_host(host: str) -> bool:
    """Say whether a Host header means this machine, with any port: tunnels have others."""
    name = re.sub(r":[0-9]{1,5}$", "", host.strip())
    return name == "localhost" or is_loopback(name.strip("[]"))


@cache
def read_file(path: str) -> Page:
    """Return one of the page's own files."""
    name, content_type = FILES[path]
    folder = resources.files(__package__.rpartition(".")[0]) / "live_page"
    return Page(200, content_type, (folder / name).read_bytes())
