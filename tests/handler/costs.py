"""What a request costs the handler: CPU seconds and memory of a child process and its children.

The child (`python -m tests.handler.costs unpack`) answers one request at a time and knows nothing
of measuring; it is looked at from outside, through /proc:

    parent: the request  ->  child: warm up    ->  "ready"
    parent: base, "go"   ->  child: answer it  ->  the answer, and it waits
    parent: what it cost, "end"

`unpack` forks for each request, so that what one leaves behind is not there for the next, and runs
`fmnist_wire.unpack`. `handle` keeps one process with the whole handler and an archive, as a worker
does.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.handler.bomb import Bomb

ROOT = Path(__file__).resolve().parents[2]
MAX_CPU_S = 3.0
"""Of one request, whatever it holds."""
MAX_BATCH_CPU_S = 8.0
"""Of one batch: the responseTimeout, after which TorchServe kills the worker."""
MAX_MEMORY_MB = 300.0
"""Of one request, above what the process had before."""
STOP_CPU_S = 20.0
"""When a request is given up, and its process killed."""
SAMPLE_INTERVAL_S = 0.01
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Row = dict[str, Any]
Requests = list[tuple[Row, Row]]
"""For each request its entries and its headers, as TorchServe hands them over."""


class Cost(NamedTuple):
    """What a request took, and the answer in a word: accepted, or why not, with counts."""

    cpu_s: float
    memory_mb: float
    answer: str

    def find_excess(self, max_cpu_s: float = MAX_CPU_S) -> list[str]:
        """Return a sentence for each bound that it exceeds."""
        found = {
            f"{self.cpu_s:.1f} s of CPU, more than {max_cpu_s:.0f}": self.cpu_s > max_cpu_s,
            f"{self.memory_mb:.0f} MB, more than {MAX_MEMORY_MB:.0f}": self.memory_mb
            > MAX_MEMORY_MB,
            f"it {self.answer}": self.answer.startswith(("raised", "stopped", "ended")),
            f"the handler failed: {self.answer}": "internal" in self.answer,
        }
        return [sentence for sentence, true in found.items() if true]


# What runs in the child


def unpack_requests() -> Callable[[Requests], str]:
    """Return what answers requests with `fmnist_wire.unpack` alone, for a model of 28 x 28."""
    sys.path.insert(0, str(ROOT / "handler"))
    import fmnist_wire as wire  # noqa: PLC0415 - only the child has it
    import yaml  # noqa: PLC0415

    taken = {"channels": 1, "height": 28, "width": 28, "background": 0}
    card = {"name": "tiny", "version": "1", "input": taken, "classes": 1}
    model = wire.read_model(card, {"0": "boot"})
    config = yaml.safe_load((ROOT / "handler" / "model-config.yaml").read_text())
    settings = wire.read_settings(config)

    def answer(requests: Requests) -> str:
        found = [wire.unpack(row, headers, model, settings) for row, headers in requests]
        return "; ".join(summarize(getattr(question, "items", (question,))) for question in found)

    return answer


def summarize(items: Sequence[object]) -> str:
    """Return how many items are of which kind."""
    counts = Counter(getattr(item, "code", None) or name_kind(item) for item in items)
    words = (f"{count} {word}" if len(items) > 1 else word for word, count in counts.items())
    return ", ".join(words)


def name_kind(item: object) -> str:
    """Return `accepted` for pixels, else the name of the type."""
    return "accepted" if hasattr(item, "shape") else type(item).__name__.lower()


def handle_requests(folder: Path) -> Callable[[Requests], str]:
    """Return what answers requests with the handler and the archive unpacked in `folder`."""
    sys.path.insert(0, str(ROOT / "handler"))
    from tests.handler.torchserve import Request, Served  # noqa: PLC0415 - imports torch

    served = Served(folder)

    def make_request(row: Row, headers: Row) -> Request:
        entries = [(name, headers[name]["content-type"], data) for name, data in row.items()]
        return Request(entries, {"Content-Type": headers["Content-Type"]})

    def answer(requests: Requests) -> str:
        answers = served.ask(*(make_request(*each) for each in requests))
        counts = Counter(f"{each.status} {summarize_body(each.body)}" for each in answers)
        return "; ".join(f"{n} x {words}" if n > 1 else words for words, n in counts.items())

    return answer


def summarize_body(body: Row) -> str:
    """Return how many predictions and errors of which kind a body holds."""
    items = body.get("predictions", [body])
    counts = Counter(find_code(item) if "error" in item else "accepted" for item in items)
    words = (f"{count} {word}" if len(items) > 1 else word for word, count in counts.items())
    return ", ".join(words)


def find_code(item: Row) -> str:
    """Return the code of an error: of an object, or of the text of the Open Inference Protocol."""
    error = item["error"]
    return str(error.partition(":")[0] if isinstance(error, str) else error["code"])


def spend_requests(requests: Requests) -> str:
    """Cost what each request says, here or in a child: the control of the measurement."""
    for row, _ in requests:
        if row.get("apart"):
            subprocess.run([sys.executable, "-c", SPEND.format(**row)], check=True)
        else:
            exec(SPEND.format(**row))  # noqa: S102 - our own text
    return "accepted"


SPEND = """
import time
held = bytearray({megabytes} * 1_000_000)
end = time.process_time() + {seconds}
while time.process_time() < end:
    pass
"""


def answer_next(answer: Callable[[Requests], str], warm: Requests, requests: Requests) -> None:
    """Answer what is asked, and wait until the parent has looked."""
    for each in warm:
        answer([each])
    say("ready")
    os.read(0, 1)  # unbuffered: what follows is not for a fork
    try:
        found = answer(requests)
    except Exception as error:  # noqa: BLE001 - that it raises is what is to be found
        found = f"raised {type(error).__name__}: {error}"[:200]
    say(json.dumps(found))
    os.read(0, 1)  # unbuffered: what follows is not for a fork


def say(line: str) -> None:
    """Tell the parent."""
    print(line, file=OUT, flush=True)


def serve(mode: str) -> None:
    """Answer until the parent goes."""
    with tempfile.TemporaryDirectory(prefix="fmnist-") as folder:
        answer = choose_answer(mode, Path(folder))
        with suppress(EOFError):
            while True:
                warm, requests = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent
                answer_or_fork(mode, lambda: answer_next(answer, warm, requests))  # noqa: B023


def choose_answer(mode: str, folder: Path) -> Callable[[Requests], str]:
    """Return what answers requests; `folder` is for the archive."""
    if mode == "handle":
        extract_archive(folder)
        return handle_requests(folder)
    return spend_requests if mode == "control" else unpack_requests()


def answer_or_fork(mode: str, step: Callable[[], None]) -> None:
    """Run a step here, or in a fork of this process."""
    if mode == "handle":
        step()
    elif child := os.fork():
        os.waitpid(child, 0)
    else:
        step()
        os._exit(0)


def extract_archive(folder: Path) -> None:
    """Unpack the model of the shipped archive; the handler is the tree's."""
    with zipfile.ZipFile(ROOT / "model_store" / "fmnist.mar") as opened:
        for name in opened.namelist():
            if name.endswith((".json", ".pt", ".pt2")):
                opened.extract(name, folder)


# What looks at it


def list_tree(pid: int) -> Iterator[int]:
    """Yield a process and all that descend from it."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield from list_tree(int(child))


def read_memory(pid: int, field: str) -> int:
    """Return VmRSS or VmHWM of a process in bytes; 0 when it has ended."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
    return 0


def read_cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, text[11:15])) / TICKS_PER_S
    return 0.0


def reset_peak(pid: int) -> None:
    """Let VmHWM begin anew, where that is allowed; else the peak is that of all its life."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


class Sampler(threading.Thread):
    """Watches the memory of a tree of processes, and ends a request that takes too long."""

    def __init__(self, pid: int, stop_cpu_s: float) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.stop_cpu_s = stop_cpu_s
        for each in list_tree(pid):
            reset_peak(each)
        self.base = sum(read_memory(each, "VmRSS") for each in list_tree(pid))
        self.begun = self.count_cpu()
        self.peak = self.base
        self.stopped = False
        self.done = threading.Event()

    def count_cpu(self) -> float:
        """Return the CPU seconds of the whole tree."""
        return sum(read_cpu(each) for each in list_tree(self.pid))

    def sample(self) -> None:
        """Look once."""
        memory = sum(read_memory(each, "VmHWM") for each in list_tree(self.pid))
        self.peak = max(self.peak, memory)

    def run(self) -> None:
        while not self.done.wait(SAMPLE_INTERVAL_S):
            self.sample()
            if self.count_cpu() - self.begun > self.stop_cpu_s:
                self.stopped = True
                kill(list(list_tree(self.pid))[::-1])
                return

    def finish(self) -> tuple[float, float]:
        """Return CPU seconds and megabytes."""
        self.sample()
        self.done.set()
        cpu = self.stop_cpu_s if self.stopped else self.count_cpu() - self.begun
        self.join()
        return cpu, (self.peak - self.base) / 1e6


def kill(pids: Sequence[int]) -> None:
    """Kill processes of ours."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)


PICTURE = (ROOT / "tests" / "data" / "ankle-boot.png").read_bytes()
WARM: Requests = [({"body": PICTURE}, {"Content-Type": "", "body": {"content-type": ""}})]
"""What is answered before the measurement, so that imports do not count."""


class Target:
    """The child that answers; it is started anew when a request had to be stopped.

    Not for several threads.
    """

    def __init__(self, mode: str = "unpack") -> None:
        self.mode = mode
        self.stack = ExitStack()
        self.child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and its children."""
        if self.child is not None:
            kill(list(list_tree(self.child.pid))[::-1])
            self.child.wait()
        self.child = None
        self.stack.close()

    def start(self) -> subprocess.Popen[bytes]:
        """Return the child, started when there is none."""
        if self.child is None:
            log = tempfile.TemporaryFile()  # noqa: SIM115 - the stack closes it
            self.log = self.stack.enter_context(log)
            argv = [sys.executable, "-m", "tests.handler.costs", self.mode]
            pipe = subprocess.PIPE
            self.child = self.stack.enter_context(
                subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=self.log, cwd=ROOT)
            )
        return self.child

    def measure(self, bomb: Bomb, times: int = 1, stop_cpu_s: float = STOP_CPU_S) -> Cost:
        """Return what a bomb costs, or so many of it in one batch."""
        return self.measure_requests([(bomb.parts(), bomb.headers())] * times, stop_cpu_s)

    def measure_requests(self, requests: Requests, stop_cpu_s: float = STOP_CPU_S) -> Cost:
        """Return what requests cost in one batch."""
        child = self.start()
        assert child.stdin is not None
        warm = [] if self.mode == "control" else WARM
        with suppress(BrokenPipeError):
            pickle.dump((warm, requests), child.stdin)
            child.stdin.flush()
        if self.hear() != b"ready\n":
            return self.fail("ended before it answered", 0.0, 0.0)
        sampler = Sampler(child.pid, stop_cpu_s)
        sampler.start()
        self.tell(child.stdin)
        line = self.hear()
        cpu, memory = sampler.finish()
        if not line:
            words = f"stopped after {cpu:.0f} s of CPU" if sampler.stopped else "ended"
            return self.fail(words, cpu, memory)
        self.tell(child.stdin)
        return Cost(cpu, memory, json.loads(line))

    def hear(self) -> bytes:
        """Return the child's next line; empty when it has ended."""
        child = self.start()
        assert child.stdout is not None
        return child.stdout.readline()

    @staticmethod
    def tell(pipe: IO[bytes]) -> None:
        """Let the child go on."""
        with suppress(BrokenPipeError):
            pipe.write(b".")
            pipe.flush()

    def fail(self, words: str, cpu_s: float, memory_mb: float) -> Cost:
        """Return the cost of a request that had no answer, with the end of the child's log."""
        time.sleep(0.05)
        self.log.seek(0)
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        self.close()
        return Cost(cpu_s, memory_mb, " ".join([words, *lines[-1:]]))


if __name__ == "__main__":
    # What libraries print must not stand between the answers.
    OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1])
