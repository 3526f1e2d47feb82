"""What an operator asks before the daemon runs, or when it does not: is all there, what is set."""

from __future__ import annotations

import json
import platform
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from . import codec
from .client import HttpClient
from .errors import Advice, Exit, Stop
from .records import Busy, Failed, Prediction, Rejection, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .settings import Service, Setting

    Check = tuple[str, Callable[[], str]]
    """A name, and what says in one sentence what it found: a plain str, or Advice; or Stop."""


class Finding(NamedTuple):
    """What one check found; `code` is what the process should end with because of it."""

    check: str
    result: Literal["ok", "advice", "failed", "skipped"]
    text: str
    code: Exit = Exit.OK


def examined(checks: Sequence[Check]) -> Iterator[Finding]:
    """One finding after the other; what comes after a failure depends on it and is skipped."""
    failed = ""
    for name, check in checks:
        finding = Finding(name, "skipped", f"{failed} comes first") if failed else find(name, check)
        failed = failed or (name if finding.result == "failed" else "")
        yield finding


def find(name: str, check: Callable[[], str]) -> Finding:
    """Make one check."""
    try:
        text = check()
    except Stop as stop:
        return Finding(name, "failed", str(stop), stop.code)
    return Finding(name, "advice" if isinstance(text, Advice) else "ok", text)


def told(findings: Iterable[Finding], *, as_json: bool) -> Iterator[str]:
    """A line for each; at the end, Stop with the first failure's code."""
    failures = []
    for finding in findings:
        failures += [finding] if finding.result == "failed" else []
        yield _json(finding) if as_json else _line(finding)
    if failures:
        names = ", ".join(failure.check for failure in failures)
        raise Stop(f"not all is well: {names}", failures[0].code)


def _line(finding: Finding) -> str:
    return f"{finding.result:8}{finding.check:14}{finding.text}"


def _json(finding: Finding) -> str:
    return json.dumps({name: getattr(finding, name) for name in ("check", "result", "text")})


def settings_are_valid() -> str:
    """They are: otherwise nothing would have come so far."""
    return "valid"


def surroundings() -> str:
    """What this runs on."""
    return f"Python {platform.python_version()}, {platform.system()} {platform.release()}"


def service(settings: Service) -> Check:
    """Whether the inference API answers a real question, and as which model."""
    return "service", partial(ask, settings, settings.timeout)


def ask(settings: Service, timeout: float) -> str:
    """Send the blank image; Stop(69) when it is not predicted within `timeout` seconds."""
    client = HttpClient(settings.url, timeout=timeout, in_flight=1, token_file=settings.token_file)
    began = time.monotonic()
    with closing(client):
        client.send(Request((codec.WITNESS,)))
        answered = client.collect(timeout)
    match answered:
        case [(_, [Prediction(body)])]:
            model, seconds = body["model"], time.monotonic() - began
            return f"{model['name']} {model['version']} answers in {seconds * 1000:.0f} ms"
        case [(_, Busy(detail) | Failed(detail))] | [(_, [Rejection(_, detail)])]:
            why = detail
        case _:
            why = f"silent for {timeout:g} s"
    raise Stop(
        f"{settings.url} does not predict a blank image ({why}): start it, or correct --url",
        Exit.UNAVAILABLE,
    )


def printed(settings: Iterable[Setting], *, as_json: bool) -> Iterator[str]:
    """Each setting, its value and where that came from."""
    for one in settings:
        yield (
            json.dumps(one._asdict()) if as_json else f"{one.name} = {one.value!r}  # {one.origin}"
        )
