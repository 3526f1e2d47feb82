"""Checks before a daemon runs, or when it does not: is all there, does the service predict."""

from __future__ import annotations

import json
import platform
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..codec import MAX_IMAGE_BYTES
from ..errors import Exit, Stop
from ..images import load_canary, pad_canary
from ..inference import list_checks, open_client
from ..records import Advice, Busy, Failed, Ok, Prediction, Rejection, Request
from ..settings import HIDDEN
from ..text import replace_control_characters
from ..verbs import URLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..command_line import Setting
    from ..records import Answer, Check, Image
    from ..verbs import Check as CheckSettings
    from ..verbs import Daemon, Server

REQUEST_BYTES = 6_553_500
"""Bytes of a request that a server should take: TorchServe's own limit."""


class Finding(NamedTuple):
    """What one check found; `code` is what the process should end with because of it."""

    check: str
    result: Literal["ok", "advice", "failed", "skipped"]
    text: str
    code: Exit = Exit.OK


def run_all(
    settings: CheckSettings | Daemon, broker: Sequence[Check], *, thorough: bool
) -> Iterator[Finding]:
    """Make the checks one after the other; the service is asked whatever the broker says."""
    if thorough:
        yield run_check(("surroundings", _describe_machine))
    yield run_check(("settings", lambda: Ok("valid")))  # or nothing would have come so far
    for exposure in settings.list_exposures():
        yield Finding("privacy", "advice", exposure)
    yield from run_checks(broker)
    pack = min(settings.pack, settings.max_batch or settings.pack)
    service = list_checks(settings, pack)
    service.append(("service", partial(ask_service, settings, settings.timeout)))
    if thorough and settings.canary is None:  # nobody knows how to pad an operator's image
        service.append(("request size", partial(ask_about_size, settings, settings.timeout)))
    yield from run_checks(service)


def run_checks(checks: Sequence[Check]) -> Iterator[Finding]:
    """Make checks of which each depends on the one before: after a failure the rest is skipped."""
    failed = ""
    for check in checks:
        name = check[0]
        finding = Finding(name, "skipped", f"{failed} comes first") if failed else run_check(check)
        failed = failed or (name if finding.result == "failed" else "")
        yield finding


def run_check(check: Check) -> Finding:
    """Make one check."""
    name, run = check
    try:
        found = run()
    except Stop as stop:
        return Finding(name, "failed", str(stop), stop.code)
    return Finding(name, "advice" if isinstance(found, Advice) else "ok", found.text)


def render_findings(findings: Iterable[Finding], *, as_json: bool) -> Iterator[str]:
    """Give a line for each; at the end, raise Stop with the first failure's code."""
    failures = []
    for finding in findings:
        failures += [finding] if finding.result == "failed" else []
        yield _render_json(finding) if as_json else _render_line(finding)
    if failures:
        names = ", ".join(failure.check for failure in failures)
        raise Stop(f"not all is well: {names}", failures[0].code)


def _render_line(finding: Finding) -> str:
    return f"{finding.result:8}{finding.check:14}{replace_control_characters(finding.text)}"


def _render_json(finding: Finding) -> str:
    return json.dumps({name: getattr(finding, name) for name in ("check", "result", "text")})


def _describe_machine() -> Ok:
    return Ok(f"Python {platform.python_version()}, {platform.system()} {platform.release()}")


def ask_service(settings: Server, timeout: float) -> Ok:
    """Send the blank image; raises Stop(69) when it is not predicted within `timeout` seconds."""
    began = time.monotonic()
    match _ask(settings, load_canary(settings.canary), timeout):
        case [Prediction(body)]:
            model, seconds = body["model"], time.monotonic() - began
            name = f"{model['name']} {model['version']}".strip()
            return Ok(f"{name} answers in {seconds * 1000:.0f} ms")
        case Busy(detail) | Failed(detail) | [Rejection(_, detail)]:
            why = detail
        case _:
            why = f"silent for {timeout:g} s"
    fix = "start it, or correct --url"
    for protocol, (form, _) in URLS.items():
        if settings.protocol == "fmnist" and form.fullmatch(settings.url):
            fix = f"give --protocol {protocol}, as the address says"
    if settings.protocol != "fmnist" and settings.canary is None:
        fix += "; if the model reads no such image, give one that it answers by --canary"
    image = "a blank image" if settings.canary is None else f"the image {settings.canary}"
    what = f"{settings.shown_url} does not predict {image}"
    raise Stop(f"{what} ({why}): {fix}", Exit.UNAVAILABLE)


def ask_about_size(settings: Server, timeout: float) -> Ok | Advice:
    """Send the blank image in the largest file that a daemon sends; no server tells its limit."""
    what = f"{settings.shown_url} takes an image of {MAX_IMAGE_BYTES} bytes, the largest sent"
    match _ask(settings, pad_canary(MAX_IMAGE_BYTES), timeout):
        case [Prediction()]:
            return Ok(what)
        case Failed(detail, reason="too_large") | [Rejection("too_large", detail)]:
            return Advice(
                f"raise the limit of the server or of a proxy before it (max_request_size of "
                f"TorchServe, client_max_body_size of nginx) to {REQUEST_BYTES}, or large images "
                f"become dead letters: {settings.shown_url} does not take one of "
                f"{MAX_IMAGE_BYTES} bytes ({detail})"
            )
        case Busy(detail) | Failed(detail) | [Rejection(_, detail)]:
            why = detail
        case _:
            why = f"silent for {timeout:g} s"
    return Advice(f"look into the server's log: it is not known whether {what} ({why})")


def _ask(settings: Server, image: Image, timeout: float) -> Answer | None:
    """What the service answers to one image; None when that takes more than `timeout` seconds."""
    with closing(open_client(settings, timeout=timeout, in_flight=1)) as client:
        client.send(Request((image,)))
        answered = client.collect(timeout)
    return answered[0][1] if answered else None


def render_settings(settings: Iterable[Setting], *, as_json: bool) -> Iterator[str]:
    """Give a line for each setting: its value, and where that came from; lines of TOML as text.

    What a file should not repeat is a comment: what is not set, what is hidden, the file itself,
    and a name that each process makes anew.
    """
    for one in settings:
        yield json.dumps(one._asdict()) if as_json else _render_setting(one)


def _render_setting(one: Setting) -> str:
    if one.value is None:
        return f"# {one.name} is not set  # {one.origin}"
    line = f"{one.name} = {_render_toml(one.value)}  # {one.origin}"
    made_anew = one.name == "instance" and one.origin == "default"
    return f"# {line}" if one.name == "config" or made_anew or _hides(one) else line


def _hides(one: Setting) -> bool:
    if one.name == "url":
        return str(one.value).endswith((f"?{HIDDEN}", f"#{HIDDEN}"))
    return isinstance(one.value, dict) and HIDDEN in one.value.values()


def _render_toml(value: object) -> str:
    match value:
        case bool() | int() | float():
            return json.dumps(value)
        case dict():
            pairs = (f"{_quote(name)} = {_render_toml(each)}" for name, each in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_render_toml, value)) + "]"
    return _quote(str(value))


def _quote(text: str) -> str:
    """Make a basic string of TOML, which a terminal shows as it is."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(map(_escape, escaped)) + '"'


def _escape(char: str) -> str:
    if char.isprintable():
        return char
    known = char.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return f"\\U{ord(known):08X}"
