"""Roll-out of another archive behind the proxy, without losing a request: `make rollout`.

The proxy of serving/nginx.conf has two sides. The new version is started on the one that is not
live, asked with real images, and made live by one rename that the proxy sees with the next request.
The old one ends when its last connection has: what it was asked is answered. Nothing is registered
with a running TorchServe. The way back is the same command with the old archive.

Which side is live is kept by the proxy's folder alone, in the link `live`. So this program may be
killed at any point: that side serves, and the next roll-out ends what was left on the other one.
`live/key_file.json` always holds the tokens of the live side.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import requests

from tools.serve import make_folder
from tools.servers.process import ROOT, Process, StackError
from tools.servers.proxy import Proxy, end_process
from tools.servers.torchserve import ARCHIVE, check_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers.proxy import Side

EXAMPLES = """examples:
  python -m tools.rollout --prepare
  python -m tools.rollout --archive model_store/1.1/fmnist.mar --version 1.1
  python -m tools.rollout --archive model_store/1.0/fmnist.mar --dry-run

exit codes: 0 the new version is live and the old one ended, 2 wrong arguments, 69 nothing was
switched, 75 the new version is live but the old one still runs, 130 interrupted
"""
IMAGES = ("tests/data/ankle-boot.png=Ankle boot", "tests/data/trouser.png=Trouser")
START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 40.0
PROXY_TIMEOUT_S = 10.0
"""For an answer through the proxy: it may refuse one more request when it is busy."""
BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}


class StillUsedError(Exception):
    """A side that is not live still has connections; the message is a sentence with the fix."""


class Image(NamedTuple):
    """An image file, and the label that the model must give it; "" for any."""

    path: Path
    label: str


def parse_image(text: str) -> Image:
    """Return path and label of FILE=LABEL, or FILE."""
    path, _, label = text.partition("=")
    found = Path(path) if Path(path).is_absolute() else ROOT / path
    if not found.is_file():
        raise argparse.ArgumentTypeError(f"{path} is no file")
    return Image(found, label)


def read_version(archive: Path) -> str:
    """Return the version of the model in a whole archive; raises StackError."""
    check_archive(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            return str(json.loads(opened.read("model.json"))["version"])
    except (KeyError, ValueError) as error:
        raise StackError(f"{archive} holds no model.json with a version: {error}") from error


def version_in(body: bytes) -> str:
    """Return the version that an answer names; "" when it names none."""
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["model"]["version"])
    return ""


class Rollout:
    """One roll-out: the steps, and how far it came."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.archive: Path = asked.archive.absolute()
        self.images: list[Image] = asked.image or [parse_image(image) for image in IMAGES]
        self.profile: str = asked.profile
        self.quiet_s: float = asked.quiet
        self.drain_s: float = asked.drain
        self.proxy = Proxy(asked.proxy.absolute())
        sides = self.proxy.sides(asked.folder.absolute())
        self.old = sides[self.proxy.live_side()]
        self.new = sides["first" if self.old.name == "second" else "second"]
        self.server: Process | None = None

    @property
    def path(self) -> str:
        """Where predictions of the model are asked for."""
        return f"/predictions/{self.archive.stem}"

    def check(self, wanted: str | None) -> None:
        """Find out, without changing anything, whether it can begin; raises StackError."""
        self.version = read_version(self.archive)
        if wanted and wanted != self.version:
            raise StackError(
                f"{self.archive} is version {self.version}, not {wanted}: name another by --archive"
            )
        if self.old.find_server() is None:
            raise StackError(
                f"the live side, {self.old.name}, has no server on port {self.old.port}: start it "
                f"by `make serve-production PORT={self.old.port} FOLDER={self.old.folder}`"
            )
        self.left = self.new.find_server()
        status, body = self.ask_proxy(self.old)
        if status != HTTPStatus.OK:
            raise StackError(
                f"the proxy answers {status} to an image for the live side, {self.old.name}: put "
                f"that right first; it says {body[:200]!r}"
            )
        self.old_version = version_in(body)

    def steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Return what is to be done, in order: a sentence and its function."""
        old, new = self.old, self.new
        if self.left:
            yield f"end what an earlier roll-out left on port {new.port}", lambda: self.retire(new)
        yield f"start version {self.version} on port {new.port}, in {new.folder}", self.start
        yield f"ask it with {len(self.images)} images", self.smoke
        yield f"switch the proxy from {old.name} to {new.name}", lambda: self.proxy.switch(new.name)
        yield f"ask the proxy, which must answer from {new.name}", self.confirm
        yield f"wait for the last answer of {old.name}, and end it", lambda: self.retire(old)

    def start(self) -> None:
        """Start the new server in the background; raises StackError when it does not predict."""
        make_folder(self.new.folder, private=True)
        command = [sys.executable, "-m", "tools.serve", "--profile", self.profile]
        command += ["--archive", str(self.archive), "--port", str(self.new.port)]
        command += ["--folder", str(self.new.folder)]
        self.server = Process(command, self.new.folder / "serve.log", cwd=ROOT)
        self.server.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while "serve: ready" not in self.server.tail():
            if not self.server.alive() or time.monotonic() > deadline:
                raise StackError(f"the new version does not start:\n{self.server.tail()}")
            time.sleep(0.1)
        self.proxy.prepare(self.new)

    def smoke(self) -> None:
        """Raise StackError unless the new server knows the images and says its version."""
        for image in self.images:
            try:
                answer = self.new.ask(f"{self.path}/{self.version}", image.path.read_bytes())
            except requests.RequestException as error:
                raise StackError(f"the new version gives no answer: {error}") from error
            said = answer.json() if answer.ok else {}
            label, version = said.get("label"), version_in(answer.content)
            print(f"  {image.path.name}: {answer.status_code}, {label}, version {version}")
            if not label or label != (image.label or label) or version != self.version:
                raise StackError(
                    f"the new version answers {image.path.name} with {answer.status_code} "
                    f"{answer.text[:200]!r}, expected {image.label or 'a label'}"
                )

    def ask_proxy(self, side: Side) -> tuple[int, bytes]:
        """Send an image through the proxy with the token of a side, again while it is busy."""
        deadline = time.monotonic() + PROXY_TIMEOUT_S
        while True:
            body = self.images[0].path.read_bytes()
            status, answer = self.proxy.ask(self.path, body, side.headers())
            if status not in BUSY or time.monotonic() > deadline:
                return status, answer
            time.sleep(0.2)

    def confirm(self) -> None:
        """Raise StackError when the proxy does not answer from the new side."""
        status, body = self.ask_proxy(self.new)
        if status != HTTPStatus.OK or version_in(body) != self.version:
            raise StackError(
                f"the proxy does not follow the switch, and answers {status} {body[:200]!r}: let "
                f"nginx's workers enter {self.proxy.folder}, and load the new nginx.conf"
            )

    def retire(self, side: Side) -> None:
        """End the server of a side that is not live, after its last answer; raises StillUsedError.

        A side without connections for a while gets no request any more: a body that the proxy still
        reads is sent within that time.
        """
        server = side.find_server()
        if server is None:
            return
        deadline = time.monotonic() + self.drain_s
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < self.quiet_s:
            if side.count_connections():
                quiet_since = time.monotonic()
            if time.monotonic() > deadline:
                raise StillUsedError(
                    f"somebody is still connected to port {side.port} of {side.name}, past the "
                    f"proxy perhaps: it was left running; end it by `kill {server.pid}`"
                )
            time.sleep(0.1)
        if not end_process(server, STOP_TIMEOUT_S):
            raise StillUsedError(f"process {server.pid} on port {side.port} does not end")

    def give_up(self) -> None:
        """Let the old side be live, and end the new server when this call started it."""
        if self.proxy.live_side() == self.new.name:
            self.proxy.switch(self.old.name)
            self.retire(self.new)
        elif self.server and hasattr(self.server, "child"):
            self.server.child.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # then the next roll-out ends it
                self.server.child.wait(STOP_TIMEOUT_S)

    def run(self) -> int:
        """Take the steps; return the exit code."""
        steps = list(self.steps())
        for number, (sentence, act) in enumerate(steps, 1):
            print(f"rollout: {number}/{len(steps)} {sentence}", flush=True)
            try:
                act()
            except (StackError, OSError) as error:
                print(f"rollout: {error}", file=sys.stderr, flush=True)
                self.give_up()
                print(f"rollout: {self.old.name} serves on", flush=True)
                return 69
        print(f"rollout: version {self.version} is live on port {self.new.port}", flush=True)
        return 0

    def interrupt(self) -> int:
        """Leave one side live, and say which; return the exit code."""
        if self.proxy.live_side() == self.new.name:
            print(
                f"rollout: interrupted after the switch: version {self.version} is live; the old "
                f"one still runs on port {self.old.port}: the next roll-out ends it"
            )
        else:
            self.give_up()
            print(f"rollout: interrupted before the switch: {self.old.name} serves on")
        return 130


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.rollout",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profiles = ("development", "production")
    add = parser.add_argument
    add("--archive", type=Path, default=ARCHIVE, help="default: model_store/fmnist.mar")
    add("--version", help="that the archive must have; default: any")
    add("--proxy", type=Path, default=ROOT / "run" / "proxy", help="its folder; default: run/proxy")
    add(
        "--folder",
        type=Path,
        default=ROOT / "run" / "production",
        help="of the first side's server; the other one's has -second behind; default: "
        "run/production",
    )
    add("--profile", choices=profiles, default=profiles[1], help="default: %(default)s")
    add(
        "--image",
        metavar="FILE[=LABEL]",
        type=parse_image,
        action="append",
        help="to ask the new version with, and the label that it must answer; may be repeated; "
        "default: two of Fashion-MNIST",
    )
    add(
        "--quiet",
        type=float,
        default=10.0,
        help="seconds without a connection after which the old side ends; default: 10",
    )
    add(
        "--drain",
        type=float,
        default=90.0,
        help="seconds to wait for that at most; default: 90",
    )
    add("--dry-run", action="store_true", help="check, and print the steps")
    add("--prepare", action="store_true", help="make live/key_file.json in the proxy's folder only")
    return parser


def roll_out(rollout: Rollout, asked: argparse.Namespace) -> int:
    """Do what is asked for; return the exit code. Raises StackError before anything is changed."""
    if asked.prepare:
        rollout.proxy.prepare(rollout.old)
        print(f"rollout: the tokens of the live side: {rollout.proxy.folder}/live/key_file.json")
        return 0
    rollout.check(asked.version)
    print(
        f"rollout: {rollout.old.name} is live on port {rollout.old.port} with version "
        f"{rollout.old_version}",
        flush=True,
    )
    if asked.dry_run:
        for sentence, _ in rollout.steps():
            print(f"rollout: would {sentence}")
        return 0
    rollout.proxy.prepare(rollout.old)
    try:
        return rollout.run()
    except StillUsedError as error:
        print(f"rollout: {error}", file=sys.stderr)
        return 75 if rollout.proxy.live_side() == rollout.new.name else 69
    except KeyboardInterrupt:
        return rollout.interrupt()


def main(argv: list[str] | None = None) -> int:
    """Roll out one archive; return the exit code."""
    asked = make_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    try:
        rollout = Rollout(asked)
        with (rollout.proxy.folder / "nginx.conf").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError("another roll-out is at work on this proxy") from None
            return roll_out(rollout, asked)
    except (StackError, OSError) as error:
        print(f"rollout: {error}; nothing was changed", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        print("rollout: interrupted; nothing was changed", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
