"""Runs TorchServe in the foreground, for development or production; Ctrl-C or SIGTERM ends it.

It checks first what TorchServe reports badly (a taken port, a damaged archive, no Java) and says
when the model really predicts. The profile `production` adds serving/production.properties to
config.properties: each request needs a token, which is renewed in time, and management listens on a
Unix socket in a folder that only this user can enter.
"""

from __future__ import annotations

import argparse
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

from tools.servers.process import ROOT, StackError, free_ports
from tools.servers.torchserve import (
    ARCHIVE,
    PORTS,
    TorchServe,
    checksum_file,
    on_ports,
    read_properties,
)

EXAMPLES = """examples:
  python -m tools.serve
  python -m tools.serve --archive model_store/flowers.mar --port 9080
  python -m tools.serve --profile production
  python -m tools.serve --profile production --folder /run/fmnist --set token_expiration_min=15

exit codes: 0 it was ended, 1 TorchServe ended by itself, 2 wrong arguments, 69 it cannot start
"""
RENEWAL_SHARE = 0.5  # of a token's life, after which it is renewed
RETRY_SHARE = 0.05  # of a token's life, from one try that failed to the next
MAX_LIFE_MIN = 366 * 24 * 60


def parse_setting(text: str) -> tuple[str, str]:
    """Return key and value of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "\n" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def parse_port(text: str) -> int:
    """Return the first of five ports."""
    if not text.isdecimal() or int(text) > 65535 - len(PORTS):
        raise argparse.ArgumentTypeError(f"{text!r} is no port that has four more above it")
    return int(text)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.serve",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profiles = ("development", "production")
    parser.add_argument(
        "--profile", choices=profiles, default=profiles[0], help="default: %(default)s"
    )
    parser.add_argument(
        "--archive", type=Path, default=ARCHIVE, help="default: model_store/fmnist.mar"
    )
    parser.add_argument(
        "--port",
        type=parse_port,
        help="of the inference API; management, metrics and the two of gRPC get the four above; "
        "0: free ones; default: those of config.properties",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="for all that it writes; default: run/torchserve, run/production in production",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=parse_setting,
        action="append",
        default=[],
        help="a line of config.properties in place of the shipped one; may be repeated",
    )
    return parser


def configured_server(asked: argparse.Namespace | None = None) -> TorchServe:
    """Return the server that is asked for on the command line; by default that of `make serve`.

    Raises StackError when the folder is not fit for production.
    """
    asked = asked or make_parser().parse_args([])
    production = asked.profile == "production"
    folder = asked.folder or ROOT / "run" / ("production" if production else "torchserve")
    folder = folder.absolute()
    settings = choose_ports(asked.port)
    if production:
        settings |= read_properties(ROOT / "serving" / "production.properties")
        settings["management_address"] = f"unix:{folder / 'management.sock'}"
    try:
        make_folder(folder, private=production)
    except OSError as error:
        raise StackError(f"{folder} cannot be made: {error}; name another by --folder") from error
    return TorchServe(asked.archive, folder, settings | dict(asked.set))


def choose_ports(first: int | None) -> dict[str, str]:
    """Return the addresses, from port `first` on; 0: free ones; None: those that are shipped."""
    if first is None:
        shipped = read_properties(ROOT / "config.properties")
        return {key: shipped[key] for key in PORTS}
    return on_ports(range(first, first + len(PORTS)) if first else free_ports(len(PORTS)))


def make_folder(folder: Path, *, private: bool) -> None:
    """Make the folder of the server, if private one that only this user can enter.

    Raises OSError, and StackError when others can enter it: then it is left as it is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if private:
        os.umask(0o077)  # for all that is written from here on, here and by TorchServe
    folder.mkdir(exist_ok=True)
    found = folder.stat()
    if private and (found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077):
        raise StackError(
            f"others can enter {folder}, which will hold the tokens: name a folder of your own "
            "by --folder; one that is missing is made with the right mode"
        )


def read_token_life_s(server: TorchServe) -> float:
    """Return the life of its tokens in seconds; raises StackError when it is no time."""
    text = server.settings.get("token_expiration_min", "60")
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < MAX_LIFE_MIN:
        raise StackError(f"token_expiration_min={text} is no number of minutes of up to a year")
    return minutes * 60


def run_until_end(server: TorchServe) -> int:
    """Return TorchServe's exit code when it has ended by itself; renew its tokens until then."""
    life_s = read_token_life_s(server)
    wait_s = life_s * RENEWAL_SHARE if server.key_file.exists() else None
    while True:
        try:
            return server.process.child.wait(wait_s)
        except subprocess.TimeoutExpired:
            wait_s = life_s * (RENEWAL_SHARE if renew_tokens(server) else RETRY_SHARE)


def renew_tokens(server: TorchServe) -> bool:
    """Renew both tokens that expire; say whether it worked."""
    try:
        for kind in ("inference", "management"):
            server.renew_token(kind)
    except StackError as error:
        print(f"serve: {error}; it is tried again", file=sys.stderr, flush=True)
        return False
    print(f"serve: renewed the tokens in {server.key_file}", flush=True)
    return True


def explain(server: TorchServe) -> str:
    """Return what people can do with a server that is ready."""
    lines = [f"ready; try: curl -T tests/data/ankle-boot.png {server.url}"]
    if server.key_file.exists():
        lines += [f"it wants Authorization: Bearer KEY, the inference key in {server.key_file}"]
    lines += [f"its log is {server.process.log}, its levels are in log4j2.xml beside it"]
    return "\n".join(f"serve: {line}" for line in [*lines, "Ctrl-C ends it"])


def main(argv: list[str] | None = None) -> int:
    """Serve until somebody ends it; return the exit code."""
    asked = make_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    try:
        print("serve: starting TorchServe …", flush=True)
        if not checksum_file(asked.archive).exists():
            print(
                f"serve: {asked.archive.name} has no checksum beside it: taken as it is", flush=True
            )
        server = configured_server(asked)
        read_token_life_s(server)
        with server:
            print(explain(server), flush=True)
            code = run_until_end(server)
            print(f"serve: TorchServe ended by itself:\n{server.process.tail()}", file=sys.stderr)
            return code or 1
    except StackError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        print("serve: stopped", flush=True)
        return 0


if __name__ == "__main__":
    sys.exit(main())
