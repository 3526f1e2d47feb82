from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image
import pytest
from rich.console import Console

from connectors.brokers.pubsub.endpoints import Unordered
from connectors.commands import listen as listen_module
from connectors.commands.listen import LiveTable, listen, read_batches
from connectors.commands.send import Sample, pace, read_idx, send
from connectors.errors import Exit, Stop
from connectors.records import Record, SizeLimit
from connectors.verbs import Listen, Send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from connectors.records import Headers

BOOT = {"class": 9, "label": "Ankle boot", "score": 0.97}
RESULT = {**BOOT, "id": "images/0/1", "top": [BOOT], "time": 1_700_000_000_000}


class Topic:
    """A Publisher that keeps what it was given, and in what order it was treated."""

    limit: SizeLimit | None = None

    def __init__(self, stop: Stop | None = None) -> None:
        self.records: list[tuple[bytes | None, bytes, Headers]] = []
        self.calls: list[str] = []
        self._stop = stop

    def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
        if self._stop:
            raise self._stop
        self.records.append((key, value, headers))

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


class Feed:
    """A Reader of what it was given, then of nothing."""

    def __init__(self, *batches: Sequence[Record] | type[BaseException]) -> None:
        self._batches = list(batches)
        self.closed = False

    def read(self, timeout: float) -> Sequence[Record]:
        assert 0 < timeout <= 1
        batch = self._batches.pop(0) if self._batches else []
        if isinstance(batch, type):
            raise batch
        return batch

    def close(self) -> None:
        self.closed = True


def prediction(
    value: bytes | None = json.dumps(RESULT).encode(),
    key: bytes | None = b"boot.png",
    headers: Headers = (),
) -> Record:
    return Record("predictions/0/1", value, key, headers, 1_700_000_000_500, None, None)


def idx(path: Path, values: bytes, *shape: int) -> None:
    path.write_bytes(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + values)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of 2 rows and 3 columns, filled with 0, 1 and 2, labelled 7, 8 and 9."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    idx(raw / "t10k-images-idx3-ubyte", b"\0" * 6 + b"\1" * 6 + b"\2" * 6, 3, 2, 3)
    idx(raw / "t10k-labels-idx1-ubyte", b"\7\x08\x09", 3)
    return tmp_path


# send


def test_the_test_set_goes_out_as_png_with_index_and_label(data: Path) -> None:
    topic = Topic()
    send(Send(test_set=True, data=data), topic)
    assert [key for key, _, _ in topic.records] == [b"test/0", b"test/1", b"test/2"]
    _, value, headers = topic.records[1]
    assert headers == (("content-type", b"image/png"), ("index", b"1"), ("label", b"8"))
    with PIL.Image.open(BytesIO(value)) as image:
        assert (image.size, image.mode, image.tobytes()) == ((3, 2), "L", b"\1" * 6)


def test_all_is_flushed_before_the_end(data: Path) -> None:
    topic = Topic()
    send(Send(test_set=True, data=data), topic)
    assert topic.calls == ["flush", "close"]


def test_the_limit_is_taken_before_the_repetition(data: Path) -> None:
    topic = Topic()
    send(Send(test_set=True, data=data, limit=2, repeat=2), topic)
    assert [key for key, _, _ in topic.records] == [b"test/0", b"test/1"] * 2


def test_files_go_out_as_they_are_under_their_names(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "b.jpg").write_bytes(b"b")
    (tmp_path / "folder" / "deep" / "c.png").write_bytes(b"c")
    (tmp_path / "folder" / "notes.txt").write_bytes(b"no image")
    (tmp_path / "raw").write_bytes(b"named, so it goes")
    topic = Topic()
    send(Send(paths=[tmp_path / "raw", tmp_path / "folder"]), topic)
    assert topic.records == [
        (
            b"raw",
            b"named, so it goes",
            (("content-type", b"application/octet-stream"), ("index", b"0")),
        ),
        (b"b.jpg", b"b", (("content-type", b"image/jpeg"), ("index", b"1"))),
        (b"c.png", b"c", (("content-type", b"image/png"), ("index", b"2"))),
    ]


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_nothing_to_send_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(Stop, match=r"is not there|no image") as stop:
        send(Send(paths=[tmp_path / name]), Topic())
    assert stop.value.code == Exit.USAGE


def test_a_missing_test_set_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(Stop, match="--data names its folder") as stop:
        send(Send(test_set=True, data=tmp_path), Topic())
    assert stop.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\0\0\x08\xff",
        b"\0\0\x08\1\0\0\0\2A",
        b"\0\0\x0d\1\0\0\0\1A",
        b"\0\0\x08\2\0\0\0\1\0",
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(Stop, match="broken is not an idx file"):
        read_idx(path)


def test_the_publisher_is_closed_when_the_topic_is_missing(data: Path) -> None:
    topic = Topic(Stop("no topic", Exit.UNAVAILABLE))
    with pytest.raises(Stop, match="no topic"):
        send(Send(test_set=True, data=data), topic)
    assert topic.calls == ["close"]


@pytest.mark.parametrize(
    "form", ["png", "jpg", "jpeg", "jfif", "gif", "bmp", "webp", "tif", "tiff"]
)
@pytest.mark.parametrize("change", [str, str.upper, str.title])
def test_all_formats_of_the_handler_are_sent_whatever_the_machine_knows(
    form: str, change: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimetypes.guess_type", lambda *_, **__: (None, None))
    (tmp_path / f"a.{change(form)}").write_bytes(b"a")
    topic = Topic()
    send(Send(paths=[tmp_path]), topic)
    [(_, value, headers)] = topic.records
    assert value == b"a"
    assert (dict(headers)["content-type"] or b"").startswith(b"image/")


@pytest.mark.parametrize("hidden", ["._a.png", ".trash.png", ".cache/a.png", "x/.y/z/b.jpg"])
def test_hidden_files_are_left_out_and_said(
    hidden: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"a")
    topic = Topic()
    send(Send(paths=[tmp_path]), topic)
    assert [key for key, _, _ in topic.records] == [b"a.png"]
    assert f"Left out, as hidden: {hidden}." in capsys.readouterr().err


def test_a_hidden_file_that_is_named_goes(tmp_path: Path) -> None:
    (tmp_path / ".a.png").write_bytes(b"a")
    topic = Topic()
    send(Send(paths=[tmp_path / ".a.png"]), topic)
    assert len(topic.records) == 1


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (make_folder, False),  # one that is named is looked into
        *((make, named) for make in (make_link, make_loop, make_pipe) for named in (False, True)),
    ],
)
def test_what_is_no_file_is_a_sentence_and_the_others_are_sent(
    make: Callable[[Path], None], tmp_path: Path, *, named: bool
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    make(tmp_path / "b.jpg")
    (tmp_path / "c.jpg").write_bytes(b"c")
    topic = Topic()
    names = [tmp_path / f"{name}.jpg" for name in "abc"]
    with pytest.raises(Stop, match=r"b\.jpg is ") as stop:
        send(Send(paths=names if named else [tmp_path]), topic)
    assert stop.value.code == Exit.USAGE
    assert [value for _, value, _ in topic.records] == [b"a", b"c"]
    assert topic.calls == ["flush", "close"]


def test_a_file_that_vanishes_is_a_sentence_and_the_others_are_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(name.encode())

    class Meddler(Topic):
        def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
            super().publish(key, value, headers)
            (tmp_path / "b.png").unlink(missing_ok=True)

    topic = Meddler()
    with pytest.raises(Stop, match=r"b\.png cannot be read \(No such file or directory\)"):
        send(Send(paths=[tmp_path], repeat=2), topic)
    assert [key for key, _, _ in topic.records] == [b"a.png", b"c.png"] * 2
    assert "Sent 4 images." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["cat/001.png", "dog/001.png"], [b"cat/001.png", b"dog/001.png"]),
        (["a/x/1.png", "b/x/1.png", "c/2.png"], [b"a/x/1.png", b"b/x/1.png", b"2.png"]),
        (["1.png", "x/1.png"], [None, b"x/1.png"]),
        (["a/1.png", "b/1.jpg"], [b"1.png", b"1.jpg"]),
    ],
)
def test_images_of_one_name_have_keys_of_their_own(
    names: list[str], keys: list[bytes | None], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    topic = Topic()
    send(Send(paths=[tmp_path]), topic)
    found = {value.decode(): key for key, value, _ in topic.records}
    assert len(set(found.values())) == len(names)
    assert all(found[name] == key for name, key in zip(names, keys, strict=True) if key)


def test_two_folders_that_are_named_have_keys_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("cat", "dog")]
    for folder in folders:
        folder.mkdir()
        (folder / "001.png").write_bytes(b"x")
    topic = Topic()
    send(Send(paths=[*folders, folders[0] / "001.png"]), topic)
    assert [key for key, _, _ in topic.records] == [b"cat/001.png", b"dog/001.png", b"cat/001.png"]


@pytest.mark.parametrize("name", [b"\xff.png", b"\x1b[2J.png", "ä.png".encode("latin-1")])
def test_a_name_of_any_bytes_is_a_key(
    name: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/" + name))
    path.write_bytes(b"x")
    topic = Topic()
    send(Send(paths=[path]), topic)
    assert topic.records[0][0] == name
    send(Send(paths=[path]), Unordered(topic))
    assert "\x1b[2J" not in capsys.readouterr().err


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "Sent {} of 3 images, then interrupted."),
        (Stop("full", Exit.UNAVAILABLE), "Handed over {} of 3 images"),
    ],
)
def test_who_is_interrupted_says_how_many_went_out(
    after: int, error: BaseException, said: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Topic):
        def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
            if len(self.records) == after:
                raise error
            super().publish(key, value, headers)

    topic = Interrupted()
    with pytest.raises(type(error)):
        send(Send(test_set=True, data=data), topic)
    assert said.format(after) in capsys.readouterr().err
    assert topic.calls[-1] == "close"


@pytest.mark.parametrize("sizes", [[200, 1, 1], [1, 300, 1], [1, 1, 101], [101, 400, 100]])
def test_what_its_topic_does_not_take_is_named_before_anything_is_sent(
    sizes: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in zip("abc", sizes, strict=True):
        (tmp_path / f"{name}.png").write_bytes(bytes(size))
    said: list[str] = []

    class Narrow(Topic):
        limit = SizeLimit(132, "raise max.message.bytes of the topic images above 132")

        def publish(self, key: bytes | None, value: bytes, headers: Headers) -> None:
            said.append(capsys.readouterr().err)
            super().publish(key, value, headers)

    topic = Narrow()
    with pytest.raises(Stop, match=r"raise max\.message\.bytes of the topic images") as stop:
        send(Send(paths=[tmp_path]), topic)
    assert stop.value.code == Exit.USAGE
    assert [len(value) for _, value, _ in topic.records] == [size for size in sizes if size <= 100]
    for name, size in zip("abc", sizes, strict=True):
        assert (f"Left out: {name}.png has {size} bytes" in said[0]) == (size > 100)


def test_where_a_key_would_be_an_order_the_name_is_a_header(data: Path) -> None:
    topic = Topic()
    send(Send(test_set=True, data=data, limit=1), Unordered(topic))
    ((key, _, headers),) = topic.records
    assert key is None
    assert headers[-2:] == (("label", b"7"), ("name", b"test/0"))
    assert topic.calls == ["flush", "close"]


def test_a_rate_holds_each_image_until_its_time() -> None:
    slept: list[float] = []
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    some = [Sample(str(n), (), bytes) for n in range(3)]
    assert list(pace(some, 4.0, lambda: now, sleep)) == some
    assert slept == [0.0, 0.25, 0.25]


def test_no_rate_never_sleeps() -> None:
    some = [Sample("a", (), bytes)]
    assert list(pace(some, None, lambda: 0.0, lambda _: pytest.fail("slept"))) == some


# listen


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_is_one_line_per_record(capsys: pytest.CaptureFixture[str]) -> None:
    feed = Feed([prediction(headers=(("label", b"9"), ("none", None)))], [prediction(key=None)])
    listen(Listen(json_lines=True, limit=2), feed)
    first, second = lines(capsys)
    assert first == {
        "record": "predictions/0/1",
        "time": 1_700_000_000_500,
        "key": "boot.png",
        "headers": {"label": "9", "none": None},
        "result": RESULT,
    }
    assert second["key"] is None
    assert feed.closed


@pytest.mark.parametrize("value", [None, b"", b"\x89PNG\r\n", b"[1]"])
def test_what_is_no_result_is_shown_as_null(
    value: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    listen(Listen(json_lines=True, limit=1), Feed([prediction(value)]))
    assert [line["result"] for line in lines(capsys)] == [None]


def test_no_more_than_the_limit_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    listen(Listen(json_lines=True, limit=3), Feed([prediction()] * 2, [], [prediction()] * 9))
    assert len(lines(capsys)) == 3


def test_silence_ends_it() -> None:
    ticks = count()
    feed = Feed([], [prediction()], [], [])
    batches = list(read_batches(feed, None, 3.0, lambda: float(next(ticks))))
    assert [len(batch) for batch in batches] == [0, 1, 0, 0]


def test_control_c_ends_it_in_peace(capsys: pytest.CaptureFixture[str]) -> None:
    feed = Feed([prediction()], KeyboardInterrupt)
    listen(Listen(json_lines=True), feed)
    assert len(lines(capsys)) == 1
    assert feed.closed


def test_the_table_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.commands.listen.time.time", lambda: 1_700_000_001.5)
    listen(Listen(limit=2), Feed([prediction(headers=(("label", b"9"),)), prediction(b"?")]))
    shown = capsys.readouterr().out
    for part in ("2 predictions", "latency 1.500 s", "100.00% of 1 right", "boot.png", "0.970"):
        assert part in shown


def test_the_rate_is_that_of_late() -> None:
    live_table = LiveTable()
    assert live_table.rate() == 0.0
    for second in range(5):
        live_table.add(prediction(), 100.0 + second / 2)
    assert live_table.rate() == 2.0


def test_the_table_shows_the_last_few() -> None:
    live_table = LiveTable()
    for number in range(listen_module.SHOWN_RECORDS + 1):
        live_table.add(prediction(key=b"key %d" % number), 0.0)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(live_table.table())
    assert "key 0 " not in capture.get()
    assert f"key {listen_module.SHOWN_RECORDS}" in capture.get()


def test_a_wrong_prediction_counts_as_wrong() -> None:
    live_table = LiveTable()
    live_table.add(prediction(headers=(("label", b"9"),)), 0.0)
    live_table.add(prediction(headers=(("label", b"3"),)), 0.0)
    assert "50.00% of 2 right" in live_table.summary()


def test_an_image_without_a_key_is_shown_by_its_name() -> None:
    live_table = LiveTable()
    live_table.add(prediction(key=None, headers=(("name", b"test/7"),)), 0.0)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(live_table.table())
    assert "test/7" in capture.get()


def test_a_key_cannot_command_the_terminal() -> None:
    live_table = LiveTable()
    live_table.add(prediction(key=b"\x1b[2J[bold]key"), 0.0)
    console = Console(width=80, force_terminal=True)
    with console.capture() as capture:
        console.print(live_table.table())
    assert "\N{REPLACEMENT CHARACTER}[2J[bold]key" in capture.get()


PIPED = """
from connectors.commands.listen import listen
from connectors.verbs import Listen
from tests.connectors.test_clients import Feed, prediction

listen(Listen(json_lines=True, idle_timeout=60), Feed(*[[prediction()] * 1000] * 1000))
"""


def test_a_reader_that_has_enough_ends_it() -> None:
    with subprocess.Popen([sys.executable, "-c", PIPED], stdout=-1, stderr=-1) as listener:
        assert listener.stdout is not None
        assert listener.stderr is not None
        assert json.loads(listener.stdout.readline())["result"] == RESULT
        listener.stdout.close()
        assert listener.stderr.read() == b""
        assert listener.wait(60) == 0


ROWS = """
import sys
from connectors.commands.listen import listen
from connectors.verbs import Listen
from tests.connectors.test_clients import Feed, prediction
listen(Listen(limit=int(sys.argv[1])), Feed(*[[prediction()]] * int(sys.argv[2])))
"""


@pytest.mark.parametrize(("limit", "batches"), [(9, 1), (9, 3), (10**6, 20)])
def test_into_a_pipe_each_record_is_a_line_as_it_comes(limit: int, batches: int) -> None:
    """It is read before the end: nothing comes after the feed, and there is no time limit."""
    command = [sys.executable, "-c", ROWS, str(limit), str(batches)]
    with subprocess.Popen(command, stdout=-1, stderr=-1) as listener:
        assert listener.stdout is not None
        lines = [listener.stdout.readline() for _ in range(batches)]
        assert listener.poll() is None
        listener.kill()
    assert lines == [b"boot.png  Ankle boot  0.970\n"] * batches


@pytest.mark.parametrize("count", [0, 1, 12])
def test_control_c_in_a_pipe_ends_with_the_summary(
    count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    listen(Listen(), Feed([prediction()] * count, KeyboardInterrupt))
    *rows, summary = capsys.readouterr().out.splitlines()
    assert len(rows) == count
    assert summary.startswith(f"{count} predictions, ")
