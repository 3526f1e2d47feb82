"""Relay images from a message broker to an inference API, and its predictions back.

Usage: python -m connectors VERB BROKER [flags]

  run BROKER           the daemon; `python -m connectors BROKER` is short for it
  send BROKER          send images
  listen BROKER        show predictions as they come
  watch BROKER         serve a live page: lag, rates, images with their predictions, dead letters
  dlq list BROKER      list dead letters
  dlq show BROKER      show whole dead letters, or write the value of one to a file
  dlq replay BROKER    send dead letters back; its --help says what is promised
  check BROKER         check whether a daemon with these settings could work
  doctor BROKER        the same, and what could be better
  print-config BROKER  print each setting, its value and where that came from

BROKER is one of: {brokers}.

Examples:
  python -m connectors kafka --input-topic images --output-topic predictions
  python -m connectors send kafka --input-topic images --test-set --limit 1000
  python -m connectors listen kafka --output-topic predictions
  python -m connectors watch kafka --input-topic images --output-topic predictions
  python -m connectors check kafka --input-topic images --output-topic predictions
  python -m connectors dlq replay kafka --input-topic images --name after-fix --dry-run
  python -m connectors pubsub --project mine --subscription images --output-topic predictions

`--help` after a verb and a broker lists the flags.

Exit codes: 0 asked to stop and left; 2 wrong usage or settings; 69 a broker, topic or
subscription is not there; 70 unexpected or stuck; 75 fenced, start again; 78 do not start again
before it is mended; 130, 143 a second signal
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import textwrap
from difflib import get_close_matches
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from .errors import Exit, Stop

try:
    from . import __version__, command_line, daemon, instrumentation, logs, registry
    from .commands import dlq, doctor, listen, send, watch
    from .verbs import (
        Check,
        Daemon,
        Doctor,
        ListDead,
        Listen,
        LivePage,
        PrintConfig,
        Replay,
        Send,
        ShowDead,
    )
except ModuleNotFoundError as missing:
    library = str(missing.name).partition(".")[0]
    if library == "connectors":
        raise
    print(
        f"connectors: {library} is not installed: install this project with the extra of "
        "your broker, in its checkout: pip install '.[kafka]' or pip install '.[pubsub]'",
        file=sys.stderr,
    )
    raise SystemExit(Exit.UNAVAILABLE) from None

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .settings import Settings

_log = logging.getLogger("connectors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    logs.configure_console()
    logs.set_library_log_level(
        logging.CRITICAL
    )  # at the start a library's trouble is our one sentence
    try:
        return _run_command(sys.argv[1:] if arguments is None else arguments)
    except Stop as stop:
        _log.error("%s", stop)
        return stop.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:  # noqa: BLE001 - this is where 70 comes from
        _log.exception("Unexpected; the supervisor may start again.")
        return Exit.UNEXPECTED


def _run_command(arguments: Sequence[str]) -> int:
    verb, broker, flags = parse_command(arguments)
    prog = f"python -m connectors {verb} {broker}"
    settings = load_settings(verb, broker, flags, prog)
    match settings:
        case Send():
            publisher = registry.open_publisher(broker, settings)
            send.send(settings, instrumentation.trace_publisher(settings, publisher))
        case Listen():
            listen.listen(settings, registry.open_reader(broker, settings))
        case LivePage():
            asked = watch.Asked()
            with daemon.handle_signals(asked.stop):
                watch.watch(settings, registry.open_watcher(broker, settings), asked)
        case ListDead():
            show(dlq.list_(settings, registry.open_dead_letters(broker, settings)))
        case ShowDead():
            show(dlq.show(settings, registry.open_dead_letters(broker, settings)))
        case Replay():
            show(dlq.replay(settings, registry.open_replay(broker, settings, dlq.encode)))
        case Check():
            thorough = isinstance(settings, Doctor)
            checks = registry.list_checks(broker, settings, thorough=thorough)
            findings = doctor.run_all(settings, checks, thorough=thorough)
            show(doctor.render_findings(findings, as_json=settings.json_lines))
        case PrintConfig():
            parts = command_line.explain(settings, flags, prog)
            show(doctor.render_settings(parts, as_json=settings.json_lines))
        case Daemon():
            daemon.run(settings, partial(registry.open_broker, broker, settings))
    return Exit.OK


def load_settings(verb: str, broker: str, flags: Sequence[str], prog: str) -> Settings:
    """Load, and log what there is to say of it in the form that was asked for."""
    with logs.hold_back() as form:
        settings = command_line.load(registry.KINDS[verb, broker], flags, prog)
        if verb == "run" and isinstance(settings, Daemon):
            form.append(settings.log)
    return settings


def show(lines: Iterable[str]) -> None:
    """Print each line as it comes, until the reader has enough, as `head` has."""
    try:
        for line in lines:
            print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit flush fails


def parse_command(arguments: Sequence[str]) -> tuple[str, str, Sequence[str]]:
    """Return verb, broker and flags; raises Stop(2) for anything else."""
    match arguments:
        case ["-h" | "--help", *_]:
            print(str(__doc__).format(brokers=", ".join(registry.BROKERS)))
            raise SystemExit(Exit.OK)
        case ["--version", *_]:
            print(f"fmnist {__version__}")
            raise SystemExit(Exit.OK)
        case [verb, broker, *flags] if (verb, broker) in registry.KINDS:
            return verb, broker, flags
        case [first, second, broker, *flags] if (f"{first} {second}", broker) in registry.KINDS:
            return f"{first} {second}", broker, flags
        case [broker, *flags] if ("run", broker) in registry.KINDS:
            return "run", broker, flags
        case [*words, "-h" | "--help"] if verbs := _list_verbs(words):
            print("\n".join(map(_render_verb, verbs)))
            raise SystemExit(Exit.OK)
    commands = ", ".join(map(" ".join, registry.KINDS))
    raise Stop(
        f"{_suggest_command(arguments)}name one of these commands: {commands}; "
        "--help explains them",
        Exit.USAGE,
    )


def _list_verbs(words: Sequence[str]) -> list[str]:
    """The verbs that begin with these words."""
    return [
        verb for verb in _list_known_verbs() if words and verb.split()[: len(words)] == list(words)
    ]


def _render_verb(verb: str) -> str:
    """What a verb does, for each broker."""
    parts = [f"python -m connectors {verb} BROKER, and then --help for its flags.\n"]
    for broker in registry.BROKERS:
        what = textwrap.dedent(f"    {registry.KINDS[verb, broker].__doc__}").strip()
        parts.append(f"{broker}: {what}\n")
    return "\n".join(parts)


def _suggest_command(arguments: Sequence[str]) -> str:
    """The command that was probably meant, by its first words."""
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))[:3]
    known = [" ".join(command) for command in registry.KINDS]
    known += [*registry.BROKERS, *_list_known_verbs()]
    for count in range(len(words), 0, -1):
        typed = " ".join(words[:count])
        if meant := get_close_matches(typed, known, n=1, cutoff=0.75):
            return "" if meant[0] == typed else f"did you mean {meant[0]}? Otherwise "
    return ""


def _list_known_verbs() -> list[str]:
    return list(dict.fromkeys(verb for verb, _ in registry.KINDS))


if __name__ == "__main__":
    sys.exit(main())
