"""Plants bugs in the connectors, one at a time, and sees whether the fast tests notice.

`python -m tests.mutants`, or `make mutants`. Each bug is planted in a copy of the tree, in a folder
of its own; the checkout is only read. It fails when a bug survives, when the text that a bug
replaces is not found exactly once, and when what killed a bug fails without it too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.progress import track

from tools.servers.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COPIED = ("connectors", "tests", "tools", "pyproject.toml")
PARALLEL_RUNS = 2
TEST_FILE_TIMEOUT_S = 300.0  # for one test file; whatever takes longer does not end

# The fastest first.
SUITE = (
    "tests/connectors/test_loop.py",
    "tests/brokers/test_memory.py",
    "tests/connectors/test_relay.py",
    "tests/connectors/test_codec.py",
    "tests/connectors/test_exhaustive.py",
    "tests/connectors/test_simulation.py",
)

RELAY = "connectors/relay.py"
LOOP = "connectors/loop.py"
CODEC = "connectors/codec.py"
HEADERS = "connectors/headers.py"
INFERENCE = "connectors/inference/torchserve.py"
MEMORY = "tests/brokers/memory.py"

OWN_TESTS = {HEADERS: "test_codec.py", INFERENCE: "test_codec.py"}
"""The test file that looks most closely at a file, where it is not called after it."""


class MutantError(Exception):
    """A bug cannot be planted or tried; the message is one sentence with the fix."""


class Mutant(NamedTuple):
    """A bug: in `file`, `old` becomes `new`, and what that would do to those who run it."""

    name: str
    file: str
    old: str
    new: str
    consequence: str


class MutantResult(NamedTuple):
    """What became of a bug: the test file and the test that noticed it, or neither."""

    mutant: Mutant
    file: str | None
    test: str
    seconds: float


MUTANTS = (
    Mutant(
        "release-out-of-order",
        RELAY,
        "while lane and (outcome := lane[0].outcome) is not None:",
        "for outcome in [one.outcome for one in lane if one.outcome]:",
        "results overtake each other, and the offset acknowledges records without an outcome",
    ),
    Mutant(
        "forget-nothing-at-reset",
        RELAY,
        "        self._out.clear()\n        self._empty()\n",
        "        self._out.clear()\n",
        "what was voided by a rebalance is committed beside its second delivery",
    ),
    Mutant(
        "forget-what-is-out-at-reset",
        RELAY,
        "        self._void.update(self._out)\n",
        "",
        "trials run beside forgotten requests, and more is out than may be in flight",
    ),
    Mutant(
        "heed-forgotten-requests",
        RELAY,
        "        self._out.clear()\n        self._empty()\n",
        "        self._empty()\n",
        "an answer from before a rebalance settles a record that is no longer held",
    ),
    Mutant(
        "busy-is-a-failure",
        RELAY,
        "        elif isinstance(answer, Busy):\n            self._refused(flight, answer, now)\n",
        "        elif isinstance(answer, Busy):\n"
        "            self._failed(flight, Failed(answer.detail), now)\n",
        "a service that restarts puts good records into quarantine",
    ),
    Mutant(
        "busy-to-the-back",
        RELAY,
        "self._waiting.extendleft(reversed(flight.pack))",
        "self._waiting.extend(flight.pack)",
        "what was refused waits behind all that came later, and blocks its lane",
    ),
    Mutant(
        "retry-after-ignored",
        RELAY,
        "if busy.after is not None:",
        "if busy.after is None and busy.after:",
        "an overloaded service is asked again sooner than it asked for",
    ),
    Mutant(
        "failed-canary-counts",
        RELAY,
        "            self._quarantine.postpone(flight.pack, now)\n",
        "            self._hold_against(flight, failed, now)\n",
        "an outage of the service rejects good records",
    ),
    Mutant(
        "canary-never-learns",
        RELAY,
        "                self._canary = pending.image\n",
        "                pass\n",
        "a service that does not take the built-in image never rejects a killer of its worker",
    ),
    Mutant(
        "canary-of-rejected-images",
        RELAY,
        "            if isinstance(outcome, Prediction):\n                self._canary",
        "            if outcome:\n                self._canary",
        "an image that nobody can read is taken for a known-good one",
    ),
    Mutant(
        "halves-in-the-wrong-order",
        RELAY,
        "self.quarantined.extendleft(reversed(packs))",
        "self.quarantined.extendleft(packs)",
        "the later half is tried first, while the earlier one blocks the lane",
    ),
    Mutant(
        "refusals-are-never-doubted",
        RELAY,
        "return now - since >= self._policy.doubt_after",
        "return now < since",
        "a record to which the server has an answer of its own stops all partitions for ever",
    ),
    Mutant(
        "refusals-count-at-once",
        RELAY,
        "return now - since >= self._policy.doubt_after",
        "return now >= since",
        "a service that is full now and then rejects what was in a request that failed",
    ),
    Mutant(
        "trials-over-any-connection",
        RELAY,
        "request = Request(images, flight.follows)",
        "request = Request(images)",
        "one of several servers answers nobody, and good records are rejected for it",
    ),
    Mutant(
        "a-refused-canary-takes-nothing-back",
        RELAY,
        "self.refusals = max(least, self.refusals - 0.5)",
        "pass",
        "in a long outage with good moments what is against a good record adds up",
    ),
    Mutant(
        "a-failed-canary-takes-nothing-back",
        RELAY,
        "self.tries = max(0.0, self.tries - 0.25)",
        "pass",
        "a service that fails most requests, whatever is in them, rejects good records",
    ),
    Mutant(
        "failures-elsewhere-count",
        RELAY,
        "self._note_reopened(flight.pack, answer, now)",
        "self._failed(flight, Failed(answer.detail), now)",
        "another server than the one that answered the canary rejects good records",
    ),
    Mutant(
        "trials-without-a-canary",
        RELAY,
        'return InFlight("canary", self.quarantined.popleft())',
        'return InFlight("trial", self.quarantined.popleft())',
        "an outage rejects good records",
    ),
    Mutant(
        "trials-as-soon-as-the-worker-is-back",
        RELAY,
        "self.quarantined.appendleft(pack)\n            self._wait(now)\n",
        'self._trial = InFlight("trial", pack, canary)\n',
        "two relays that waited for the same worker try their records in step",
    ),
    Mutant(
        "trials-beside-traffic",
        RELAY,
        "requests = [] if self._count_out() else [self._send(self._quarantine.take())]",
        "requests = [self._send(self._quarantine.take())]",
        "a quarantined record is tried beside neighbours that may be to blame",
    ),
    Mutant(
        "trials-without-growing-waits",
        RELAY,
        "double(policy.trial_first, policy.trial_limit, failures)",
        "policy.trial_first",
        "two relays that hold such images meet again and again and reject good records",
    ),
    Mutant(
        "window-ignores-bytes",
        RELAY,
        "full = self._lanes.held_bytes >= self._policy.window_bytes",
        "full = False",
        "4,096 large images are held at once: out of memory",
    ),
    Mutant(
        "pack-ignores-bytes",
        RELAY,
        "            if capacity < 0:\n",
        "            if capacity < -self._policy.pack_bytes:\n",
        "TorchServe refuses packs of large images with 413, and each is cut in vain",
    ),
    Mutant(
        "more-in-flight-than-allowed",
        RELAY,
        "return self._count_out() < self._policy.in_flight",
        "return len(self._out) <= self._policy.in_flight",
        "the server's queue fills with requests that nobody waits for any more",
    ),
    Mutant(
        "rest-with-a-full-window",
        RELAY,
        "        return now if stalled else self._commits.due_at\n",
        "        return self._commits.due_at\n",
        "a full window without a question left waits out the rest after a commit",
    ),
    Mutant(
        "limit-judged-after-the-commit",
        RELAY,
        "self._future = self._limit.followed_by(batch)\n",
        "self._future = self._limit.followed_by(self._batch)\n",
        "the dead letters of a bad hour are committed before anybody is asked",
    ),
    Mutant(
        "aborted-outcomes-enter-the-history",
        RELAY,
        "self._future = self._limit.followed_by(batch)",
        "self._future = self._limit = self._limit.followed_by(batch)",
        "a broker that aborts three times stops the daemon for dead letters nobody wrote",
    ),
    Mutant(
        "drain-that-forgets",
        RELAY,
        "return deadline is not None and (not self._lanes.held or now >= deadline)",
        "return deadline is not None",
        "each restart throws away the answers that were on their way",
    ),
    Mutant(
        "drain-without-deadline",
        RELAY,
        "(not self._lanes.held or now >= deadline)",
        "not self._lanes.held",
        "a daemon beside a dead service never leaves, until it is killed",
    ),
    Mutant(
        "rewound-is-ignored",
        LOOP,
        "            relay.reset()\n",
        "            pass\n",
        "after a rebalance the relay goes on with records that belong to others",
    ),
    Mutant(
        "committed-before-the-commit",
        LOOP,
        "                exchange_until_committed(relay, client, committer, clock)\n"
        "                relay.committed(clock())\n",
        "                relay.committed(clock())\n"
        "                exchange_until_committed(relay, client, committer, clock)\n",
        "the history and the counts tell of commits that were aborted",
    ),
    Mutant(
        "a-commit-is-not-waited-for",
        LOOP,
        "    while not committer.wait(0.0 if relay.stats.out else POLL_INTERVAL):\n",
        "    if not committer.wait(0.0 if relay.stats.out else POLL_INTERVAL):\n",
        "the broker is polled while it commits, and what is not committed is forgotten",
    ),
    Mutant(
        "nothing-goes-out-beside-a-commit",
        LOOP,
        "        take_answers(relay, client, clock, POLL_INTERVAL if relay.stats.out else 0.0)\n"
        "        send_due(relay, client, clock)\n",
        "        take_answers(relay, client, clock, POLL_INTERVAL if relay.stats.out else 0.0)\n",
        "the service is idle for as long as a commit takes",
    ),
    Mutant(
        "poll-without-regard-to-capacity",
        LOOP,
        "broker.poll(relay.capacity(), ",
        "broker.poll(max(1, relay.capacity()), ",
        "a slow service lets the relay hold more and more, until memory ends",
    ),
    Mutant(
        "a-stop-is-a-rewind",
        LOOP,
        "        except Rewound as why:\n",
        "        except (Rewound, RuntimeError) as why:\n",
        "an unexpected error is repeated for ever instead of ending the process",
    ),
    Mutant(
        "content-type-unsanitised",
        CODEC,
        "_MEDIA_TYPE.fullmatch(essence)",
        "_MEDIA_TYPE.match(essence)",
        "a record writes header lines of its own into the request",
    ),
    Mutant(
        "types-of-several-things-go-along",
        CODEC,
        '_MEDIA_TYPE = re.compile(b"(?:" + _KIND + b")/" + _NAME)',
        '_MEDIA_TYPE = re.compile(_NAME + b"/" + _NAME)',
        "one record's multipart/mixed makes the server answer 500 to its whole pack, for ever",
    ),
    Mutant(
        "headers-stacked",
        HEADERS,
        "header for header in headers if header[0] == REPLAY or not is_ours(header[0])",
        "header for header in headers",
        "a record that was replayed tells two reasons, and tools read the wrong one",
    ),
    Mutant(
        "retry-after-lost",
        INFERENCE,
        '    return Busy(excerpt(f"{status}", content), after)\n',
        '    return Busy(excerpt(f"{status}", content))\n',
        "what the service asked for never reaches the relay",
    ),
    Mutant(
        "too-large-is-busy",
        INFERENCE,
        'return Failed(detail, final=True, status=status, reason="too_large")',
        "return Busy(detail, after)",
        "one image that is too large stops its lane for ever",
    ),
    Mutant(
        "unknown-answers-are-failures",
        INFERENCE,
        'reply.get("type") == _FAILURE:',
        "reply is not None:",
        "a proxy's error page is evidence against good records",
    ),
    Mutant(
        "fewer-outcomes-than-images",
        INFERENCE,
        " or len(items) != count or",
        " or",
        "an answer for another pack is taken for this one",
    ),
    Mutant(
        "tombstones-vanish",
        CODEC,
        'skip = tombstones == "skip"',
        "skip = True",
        "records without a value disappear although the operator wants them kept",
    ),
    Mutant(
        "commit-the-last-offset",
        MEMORY,
        "offsets[self._subscription.input, partition] = offset + 1",
        "offsets[self._subscription.input, partition] = offset",
        "the last record of each commit comes twice",
    ),
    Mutant(
        "an-abort-is-ignored",
        MEMORY,
        "if cell and (everything or transaction is None or transaction.committed):",
        "if cell and (everything or transaction is None or not transaction._open):",
        "readers see results of commits that never happened, and then once more",
    ),
    Mutant(
        "a-generation-is-ignored",
        MEMORY,
        "if name not in self._members or generation != self.generation:",
        "if name not in self._members:",
        "a daemon commits what the group has given to another",
    ),
    Mutant(
        "offsets-beside-the-transaction",
        MEMORY,
        "        self._acknowledged.append((group, offsets))\n",
        "        group.offsets.update(offsets)\n",
        "an aborted commit has acknowledged records without an outcome: they are lost",
    ),
    Mutant(
        "readers-pass-open-transactions",
        MEMORY,
        "return min(self._open.values(), default=self.end)",
        "return self.end",
        "what becomes visible when a transaction ends has been passed by its readers",
    ),
    Mutant(
        "successors-do-not-wait",
        MEMORY,
        "        if self._memory.unstable(self._group):\n            return None\n",
        "",
        "a successor begins at offsets that an open transaction is about to move",
    ),
)


def apply_mutant(text: str, mutant: Mutant) -> str:
    """Return the text with the bug in it; raises MutantError when it has no one place for it."""
    found = text.count(mutant.old)
    if found != 1:
        why = f"the old text of {mutant.name} is {found} times in {mutant.file}, not once"
        raise MutantError(f"{why}: write it anew in tests/mutants.py")
    return text.replace(mutant.old, mutant.new)


def check(mutants: Iterable[Mutant], root: Path) -> None:
    """Raise MutantError when a bug cannot be planted in this tree."""
    for mutant in mutants:
        apply_mutant((root / mutant.file).read_text(encoding="utf-8"), mutant)


def plant(mutant: Mutant, tree: Path) -> None:
    """Write the bug into a tree."""
    file = tree / mutant.file
    file.write_text(apply_mutant(file.read_text(encoding="utf-8"), mutant), encoding="utf-8")


def copy(root: Path, tree: Path) -> None:
    """Copy what the tests need, but no compiled files: they could hide a bug."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, tree / name)


def order_suite(suite: Sequence[str], mutant: Mutant) -> list[str]:
    """Return the test files, the one of the mutated file first."""
    own = OWN_TESTS.get(mutant.file, f"test_{Path(mutant.file).stem}.py")
    return sorted(suite, key=lambda file: Path(file).name != own)


async def find_failure(tests: Sequence[str], tree: Path) -> str | None:
    """Run test files, or single tests; return the first test that fails, or None.

    Raises MutantError when pytest could not run it.
    """
    # Always the same examples: otherwise a bug would die on one day and live on another.
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=1", "--tb=no"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", *flags, *tests),
        cwd=tree,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to handle
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), TEST_FILE_TIMEOUT_S)
    except TimeoutError:
        return f"no end within {TEST_FILE_TIMEOUT_S:.0f} s"
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return parse_result(process.returncode, output.decode(errors="replace"))


def parse_result(code: int | None, output: str) -> str | None:
    """Return what pytest says: the test that failed, or None when none did."""
    if code == 0:
        return None
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    if code != 1 or not failed:
        raise MutantError(f"pytest could not run the tests (exit code {code}):\n{output[-2000:]}")
    return failed[0].removeprefix("FAILED ").partition(" - ")[0]


async def try_mutant(
    mutant: Mutant, root: Path, suite: Sequence[str], slots: asyncio.Semaphore
) -> MutantResult:
    """Plant one bug and run test files until one fails."""
    async with slots:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fmnist-mutant-") as folder:
            copy(root, Path(folder))
            plant(mutant, Path(folder))
            for file in order_suite(suite, mutant):
                if test := await find_failure([file], Path(folder)):
                    return MutantResult(mutant, file, test, time.monotonic() - began)
        return MutantResult(mutant, None, "", time.monotonic() - began)


async def require_green(tests: set[str], root: Path) -> None:
    """Raise MutantError when a test fails without any bug: then it has killed nothing."""
    if not tests:
        return
    with tempfile.TemporaryDirectory(prefix="fmnist-mutant-") as folder:
        copy(root, Path(folder))
        if test := await find_failure(sorted(tests), Path(folder)):
            raise MutantError(f"{test} fails without any bug: correct it first")


async def try_all(
    mutants: Sequence[Mutant], root: Path, suite: Sequence[str]
) -> list[MutantResult]:
    """Try all bugs, a few at once; what became of them is in their order."""
    slots = asyncio.Semaphore(PARALLEL_RUNS)
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(try_mutant(each, root, suite, slots)) for each in mutants]
        finished = asyncio.as_completed(runs)
        shown_on = Console(stderr=True)
        for mutant_run in track(finished, "Mutants", total=len(runs), console=shown_on):
            await mutant_run
    return [mutant_run.result() for mutant_run in runs]


def print_report(results: Sequence[MutantResult], seconds: float) -> None:
    """Print the table for people."""
    width = max(len(each.mutant.name) for each in results)
    for each in results:
        killed_by = each.test or f"SURVIVED: {each.mutant.consequence}"
        print(f"{each.mutant.name:{width}}  {each.seconds:6.1f} s  {killed_by}")
    killed = sum(each.file is not None for each in results)
    print(f"{killed} of {len(results)} mutants killed in {seconds:.0f} s")


def write_json(results: Sequence[MutantResult], path: Path) -> None:
    """Write the same for programs."""
    found = [
        {
            "name": each.mutant.name,
            "file": each.mutant.file,
            "hurts": each.mutant.consequence,
            "killed_by": each.file,
            "test": each.test or None,
            "seconds": round(each.seconds, 1),
        }
        for each in results
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def select_mutants(names: Sequence[str]) -> list[Mutant]:
    """Return the bugs of these names, or all."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise MutantError(f"there is no {', '.join(sorted(unknown))}: --list names them all")
    return [mutant for mutant in MUTANTS if mutant.name in names or not names]


def run(mutants: Sequence[Mutant], root: Path, suite: Sequence[str], output: Path | None) -> int:
    """Try bugs and tell what became of them; return the exit code."""
    check(mutants, root)
    began = time.monotonic()
    try:
        results = asyncio.run(try_all(mutants, root, suite))
    except* MutantError as errors:
        raise MutantError(str(errors.exceptions[0])) from None
    print_report(results, time.monotonic() - began)
    if output:
        write_json(results, output)
    asyncio.run(require_green({each.test for each in results if "::" in each.test}, root))
    return 0 if all(result.file for result in results) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Do what was asked; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", metavar="NAME", nargs="+", default=[], help="try only these")
    parser.add_argument("--list", action="store_true", help="name the bugs and what they would do")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the table here")
    asked = parser.parse_args(argv)
    try:
        mutants = select_mutants(asked.only)
        if not asked.list:
            return run(mutants, ROOT, SUITE, asked.json)
    except MutantError as error:
        print(f"mutants: {error}")
        return 1
    except KeyboardInterrupt:
        print("mutants: stopped; nothing is left running")
        return 130
    for mutant in mutants:
        print(f"{mutant.name} ({mutant.file}): {mutant.consequence}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
