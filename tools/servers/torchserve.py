"""TorchServe for tests, the demo and `make serve`: free ports, a private folder, one archive."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import socket
import struct
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Self

import requests

from tools.servers.process import (
    ROOT,
    Process,
    StackError,
    check_free,
    free_ports,
    java_environment,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ARCHIVE = ROOT / "model_store" / "fmnist.mar"
PICTURE = ROOT / "tests" / "data" / "ankle-boot.png"
DAMAGES = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises for a damaged file in memory, whose sizes, methods and flags it believes."""


def check_archive(archive: Path) -> None:
    """Raise StackError when `archive` is missing, no whole zip file, or not what its checksum says.

    An archive without a checksum file is taken: it may be somebody else's.
    """
    if not archive.is_file():
        raise StackError(f"{archive} is not there: run `make archive`")
    content = archive.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as opened:
            broken = opened.testzip()
    except DAMAGES:
        broken = archive.name
    if broken:
        raise StackError(f"{archive} is damaged (at {broken}): rm it and run `make archive`")
    expected = read_checksum(archive)
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise StackError(
            f"{archive} is not the file that {checksum_file(archive).name} was written for: run "
            "`make archive`, or write the new sum with sha256sum when you replaced it on purpose"
        )


def checksum_file(archive: Path) -> Path:
    """Return where the checksum of `archive` lies, in the form of sha256sum."""
    return archive.with_name(f"{archive.name}.sha256")


def read_checksum(archive: Path) -> str | None:
    """Return the SHA-256 that `archive` should have, in hexadecimal; None when none is there.

    Raises StackError when the file beside it holds none for this archive.
    """
    try:
        words = checksum_file(archive).read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return None
    if len(words) != 2 or words[1].removeprefix("*") != archive.name:  # noqa: PLR2004 - sum, name
        raise StackError(
            f"{checksum_file(archive)} is no checksum of {archive.name}: run `make archive`"
        )
    return words[0].lower()


def read_properties(path: Path) -> dict[str, str]:
    """Return the keys and values of a Java properties file of the simple kind."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


PORTS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_port",
    "grpc_management_port",
)


def on_free_ports() -> dict[str, str]:
    """Return the five settings that let another TorchServe run on this machine."""
    return on_ports(free_ports(len(PORTS)))


def on_ports(ports: Sequence[int]) -> dict[str, str]:
    """Return the settings that let TorchServe listen on these ports, one for each of PORTS."""
    return {
        key: str(port) if key.endswith("port") else f"http://127.0.0.1:{port}"
        for key, port in zip(PORTS, ports, strict=True)
    }


UNIX = "unix:"
MAX_SOCKET_PATH_BYTES = 107
WORKER_SOCKET = "tmp/.ts.sock.9000"
"""The longest path of a socket that TorchServe makes below its folder by itself."""


def check_socket_path(path: str) -> None:
    """Raise StackError when the kernel has no room for the path of this Unix socket."""
    length = len(path.encode())
    if length > MAX_SOCKET_PATH_BYTES:
        raise StackError(
            f"the path of the socket {path} has {length} bytes, and the kernel takes "
            f"{MAX_SOCKET_PATH_BYTES}: choose a folder with a shorter path by --folder"
        )


class ManagementConnection(HTTPConnection):
    """To a management address: `http://host:port`, or `unix:` and a path."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        self._path = address.removeprefix(UNIX) if address.startswith(UNIX) else None
        super().__init__("" if self._path else address.removeprefix("http://"), timeout=timeout)

    def connect(self) -> None:
        """See `HTTPConnection.connect`."""
        if self._path is None:
            return super().connect()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        return self.sock.connect(self._path)


class TorchServe:
    """A TorchServe with the shipped config.properties, but for `overrides`; one archive.

    Its folder holds everything that it writes; without one it gets a private one, removed at
    the end. Readiness is a real prediction: /ping calls a server healthy that has no worker.
    """

    def __init__(
        self,
        archive: Path = ARCHIVE,
        folder: Path | None = None,
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        self.archive = archive
        self.settings = read_properties(ROOT / "config.properties") | dict(
            overrides or on_free_ports()
        )
        self.settings["model_store"] = str(archive.resolve().parent)
        self.model = archive.stem
        self._own = tempfile.TemporaryDirectory(prefix="fmnist-") if folder is None else None
        self.folder = Path(self._own.name) if self._own else folder or ROOT
        # It runs in its folder, not in ours. The copy of log4j2.xml there is for the operator: it
        # is read again when it changes.
        for key, home in {"metrics_config": ROOT / "serving", "vmargs": self.folder}.items():
            self.settings[key] = self.settings[key].replace("serving/", f"{home}/")
        self.process = Process(
            [
                *(str(Path(sys.executable).parent / "torchserve"), "--start", "--ncs"),
                *("--foreground", "--ts-config", str(self.folder / "config.properties")),
                *("--models", f"{self.model}={archive.name}"),
            ],
            log=self.folder / "torchserve.log",
            env=self._environment(),
            cwd=self.folder,
        )

    def _environment(self) -> dict[str, str]:
        # Java's temporary folder follows TEMP, the launcher's pid file TMPDIR. TS_CONFIG_FILE
        # would overrule the settings.
        kept = {k: v for k, v in java_environment().items() if k != "TS_CONFIG_FILE"}
        scratch = str(self.folder / "tmp")
        return kept | {"TEMP": scratch, "TMPDIR": scratch}

    @property
    def description_url(self) -> str:
        """Where the management API gives the archive's model.json."""
        return f"{self.settings['management_address']}/models/{self.model}?customized=true"

    @property
    def address(self) -> str:
        """The inference API's address."""
        return self.settings["inference_address"]

    @property
    def url(self) -> str:
        """Where predictions are asked for."""
        return f"{self.address}/predictions/{self.model}"

    def start(self) -> Self:
        """Start it; it does not answer yet. Raises StackError when it cannot."""
        check_archive(self.archive)
        check_socket_path(str(self.folder / WORKER_SOCKET))
        for address in map(self.settings.__getitem__, PORTS):
            if address.startswith(UNIX):
                check_socket_path(address.removeprefix(UNIX))
            else:
                check_free(int(address.rsplit(":", 1)[-1]))
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.key_file.unlink(missing_ok=True)  # of another start
        shutil.copyfile(ROOT / "serving" / "log4j2.xml", self.folder / "log4j2.xml")
        lines = [f"{key}={value}\n" for key, value in self.settings.items()]
        (self.folder / "config.properties").write_text("".join(lines))
        self.process.start()
        return self

    def wait(self, timeout: float = 120.0) -> Self:
        """Return when it predicts; raises StackError with the end of its log when it does not."""
        deadline = time.monotonic() + timeout
        while self.process.alive() and time.monotonic() < deadline:
            if self.predicts():
                return self
            time.sleep(0.2)
        raise StackError(f"TorchServe does not predict; its log ends with:\n{self.process.tail()}")

    def predicts(self) -> bool:
        """Say whether it answers one real question."""
        picture, token = PICTURE.read_bytes(), {}
        with suppress(FileNotFoundError, ValueError):  # not there, or half written
            token = {"Authorization": f"Bearer {self.key('inference')}"}
        try:
            return requests.post(self.url, data=picture, headers=token, timeout=5).ok
        except requests.RequestException:
            return False

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its tokens when it wants one with each request."""
        return self.folder / "key_file.json"

    def key(self, kind: str) -> str:
        """Return the token of one kind: inference, management or API."""
        found: str = json.loads(self.key_file.read_text())[kind]["key"]
        return found

    def renew_token(self, kind: str) -> None:
        """Let it make a new token, inference or management; the old one is void at once.

        Raises StackError when it does not.
        """
        address = self.settings["management_address"]
        try:
            with closing(ManagementConnection(address)) as connection:
                headers = {"Authorization": f"Bearer {self.key('API')}"}
                connection.request("GET", f"/token?type={kind}", headers=headers)
                status = connection.getresponse().status
        except (OSError, ValueError, HTTPException) as error:
            raise StackError(f"the {kind} token could not be renewed: {error}") from error
        if status != HTTPStatus.OK:
            raise StackError(f"the {kind} token could not be renewed: {address} answers {status}")

    def __enter__(self) -> Self:
        """Start it and wait until it predicts."""
        try:
            return self.start().wait()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        """End it and remove what it wrote."""
        self.close()

    def close(self) -> None:
        """End it, and remove its folder when it is its own."""
        if hasattr(self.process, "child"):
            self.process.stop()
        if self._own:
            self._own.cleanup()
