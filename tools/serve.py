"""Runs TorchServe in the foreground, as config.properties says: `python -m tools.serve`.

It checks first what TorchServe reports badly (a taken port, a damaged archive, no Java), says
when the model really predicts, and ends with Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys

from tools.servers.process import ROOT, StackError
from tools.servers.torchserve import (
    ARCHIVE,
    PORTS,
    TorchServe,
    checksum_file,
    read_properties,
)


def configured_server() -> TorchServe:
    """Return the server with the addresses of config.properties, writing below run/."""
    settings = read_properties(ROOT / "config.properties")
    folder = ROOT / "run" / "torchserve"
    folder.mkdir(parents=True, exist_ok=True)
    return TorchServe(folder=folder, overrides={key: settings[key] for key in PORTS})


def main(argv: list[str] | None = None) -> int:
    """Serve until somebody ends it; return the exit code."""
    argparse.ArgumentParser(prog="python -m tools.serve", description=__doc__).parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the way out of Ctrl-C
    try:
        print("serve: starting TorchServe …", flush=True)
        if not checksum_file(ARCHIVE).exists():
            print(f"serve: {ARCHIVE.name} has no checksum beside it: taken as it is", flush=True)
        with configured_server() as server:
            print(f"serve: ready; try: curl -T tests/data/ankle-boot.png {server.url}", flush=True)
            print(f"serve: its log is {server.process.log.relative_to(ROOT)}; Ctrl-C ends it")
            code = server.process.child.wait()
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
