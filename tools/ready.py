"""Asks a TorchServe for one real prediction: the command of a container's probes.

It starts quickly, since it is started every few seconds: the standard library alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

PICTURE = Path(__file__).resolve().parents[1] / "tests" / "data" / "ankle-boot.png"
URL = "http://127.0.0.1:8080/predictions/fmnist"
TIMEOUT = 8.0
"""Seconds; below `timeoutSeconds` of the probes in deploy/base/pair.yaml."""


def describe_trouble(url: str) -> str | None:
    """Say why the server does not predict; None when it does.

    Not by /ping, which calls a server healthy that has no worker.
    """
    headers = {"Content-Type": "image/png"}
    request = urllib.request.Request(url, PICTURE.read_bytes(), headers)  # noqa: S310 - the operator's
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            answer = json.load(response)
    except (OSError, HTTPException, ValueError) as error:
        return f"{url} does not predict: {error}"
    return None if "class" in answer else f"{url} does not predict: it answers {answer}"


def main(argv: list[str] | None = None) -> int:
    """Return 0 when the server predicts, else 1 and one sentence."""
    parser = argparse.ArgumentParser(prog="python -m tools.ready", description=__doc__)
    parser.add_argument("url", nargs="?", default=URL, help="default: %(default)s")
    trouble = describe_trouble(parser.parse_args(argv).url)
    if trouble:
        print(f"ready: {trouble}", file=sys.stderr)
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
