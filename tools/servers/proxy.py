"""The proxy of serving/nginx.conf: its two sides, which of them is live, and the switch."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tools.servers.process import StackError

ASK_TIMEOUT_S = 30.0
UPSTREAM = r"upstream (first|second) \{[^}]*?\bserver 127\.0\.0\.1:(\d+)"
CERTIFICATE = r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----"


def find_holders(port: int, status: str) -> list[int | None]:
    """Return who holds each TCP socket of this port in this state; None for another user's."""
    return [
        one.pid
        for one in psutil.net_connections("tcp")
        if one.status == status and one.laddr and one.laddr.port == port
    ]


def end_process(process: psutil.Process, timeout_s: float) -> bool:
    """Ask a process to end; say whether it did.

    One that its parent has not fetched yet has ended: psutil's own `wait` would wait for that.
    """
    deadline = time.monotonic() + timeout_s
    with suppress(psutil.NoSuchProcess):
        process.terminate()
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


@dataclass(frozen=True)
class Side:
    """One of the two places of a server behind the proxy."""

    name: str
    port: int
    folder: Path
    """Of the server, for all that it writes."""

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its tokens."""
        return self.folder / "key_file.json"

    def headers(self) -> dict[str, str]:
        """Return the authorization that this side wants now; none without a token."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            key = json.loads(self.key_file.read_text())["inference"]["key"]
            return {"Authorization": f"Bearer {key}"}
        return {}

    def ask(self, path: str, body: bytes) -> requests.Response:
        """Send one image to the server itself; raises requests.RequestException."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return requests.post(url, data=body, headers=self.headers(), timeout=ASK_TIMEOUT_S)

    def count_connections(self) -> int:
        """Return how many clients are connected, the proxy's idle connections of a second too."""
        return len(find_holders(self.port, psutil.CONN_ESTABLISHED))

    def find_server(self) -> psutil.Process | None:
        """Return the `tools.serve` that listens here, None when nobody does.

        Raises StackError when it is another program.
        """
        pids = find_holders(self.port, psutil.CONN_LISTEN)
        if not pids:
            return None
        for pid in filter(None, pids):
            for process in psutil.Process(pid).parents():
                if "tools.serve" in process.cmdline():
                    return process
        raise StackError(
            f"port {self.port} is held by a program that `make serve-production` did not start "
            f"(or another user did): end it, or change `upstream {self.name}` of the proxy"
        )


@dataclass(frozen=True)
class Proxy:
    """The folder of an nginx that runs with serving/nginx.conf."""

    folder: Path

    def read(self) -> str:
        """Return its configuration; raises StackError when there is none."""
        try:
            return (self.folder / "nginx.conf").read_text()
        except OSError as error:
            raise StackError(
                f"{self.folder} holds no nginx.conf: name the proxy's folder by --proxy, "
                "see docs/production.md"
            ) from error

    def sides(self, server: Path) -> dict[str, Side]:
        """Return both sides by name; `server` is the folder of the first one's server."""
        ports = dict(re.findall(UPSTREAM, self.read()))
        if set(ports) != {"first", "second"}:
            raise StackError(
                f"{self.folder / 'nginx.conf'} has no upstreams `first` and `second` on 127.0.0.1: "
                "take over those of serving/nginx.conf, with the switch, and reload nginx"
            )
        folders = {"first": server, "second": server.with_name(f"{server.name}-second")}
        return {name: Side(name, int(ports[name]), folders[name]) for name in folders}

    def live_side(self) -> str:
        """Return the name of the live side, by the test that nginx makes."""
        return "second" if (self.folder / "live" / "second").is_file() else "first"

    def prepare(self, side: Side) -> None:
        """Make the folder that `live` points to while this side is live."""
        folder = self.folder / side.name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)  # nginx's workers may be another user; the tokens stay closed to them
        replace_link(folder / "key_file.json", side.key_file)
        if side.name == "second":
            (folder / "second").touch()
        if not (self.folder / "live").is_symlink():
            replace_link(self.folder / "live", Path("first"))

    def switch(self, name: str) -> None:
        """Make a side live, for all requests that begin from now on."""
        replace_link(self.folder / "live", Path(name))

    def ask(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Send one image through the proxy, as from this machine; return status and body.

        Raises StackError when the proxy is not there.
        """
        (port,) = re.findall(r"\blisten (?:127\.0\.0\.1:)?(\d+) ssl;", self.read())[:1] or ["443"]
        try:
            with closing(self._connect(int(port))) as connection:
                connection.request("POST", path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise StackError(f"the proxy on port {port} gives no answer: {error}") from error

    def _connect(self, port: int) -> http.client.HTTPSConnection:
        # Its name is that of clients: it is known by its very certificate, before it gets a token.
        found = re.search(CERTIFICATE, (self.folder / "server.crt").read_text(), re.DOTALL)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, context=context, timeout=ASK_TIMEOUT_S
        )
        connection.connect()
        presented = connection.sock.getpeercert(binary_form=True)
        if found is None or presented != ssl.PEM_cert_to_DER_cert(found[0]):
            connection.close()
            raise StackError(f"who listens on port {port} has not the certificate in server.crt")
        return connection


def replace_link(link: Path, target: Path) -> None:
    """Let a symbolic link point to `target`, in one step."""
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    scratch.replace(link)
