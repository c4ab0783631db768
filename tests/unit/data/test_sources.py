"""Where files come from: folders, the package, and downloads from a server that misbehaves."""

import errno
import hashlib
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lodarepro.config import Data, Dataset, Files, Pin
from lodarepro.data import sources
from lodarepro.data.sources import Source, locate
from lodarepro.errors import BadInput

CONTENT = b"".join(b"name : Ant %d | area : hill||Ant %d lives on the hill .\n" % (i, i) for i in range(4000))
HALF = len(CONTENT) // 2


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()


BLOB = blob_id(CONTENT)
DATASET = Dataset(
    name="ants",
    format="e2e",
    suite="e2e",
    files=Files(train="train.txt", valid="valid.txt", test="test.txt"),
    remote="remote ants",
    pins={"train.txt": Pin(blob=BLOB, examples=4000)},
)
EMBEDDED = replace(DATASET, remote=None, pins={})


class FileServer(ThreadingHTTPServer):
    """Serves CONTENT at any path; `script` says how each request in turn is answered."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.script: list[str] = []
        self.requests: list[tuple[str, str | None]] = []
        self.go_on = threading.Event()
        """a `stall` answer sends its second half after this"""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    @property
    def ranges(self) -> list[str | None]:
        return [asked for _, asked in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.requests.append((self.path, asked))
        how = self.server.script.pop(0) if self.server.script else "serve"
        if how == "drop":  # the connection ends before any answer
            return
        if how.isdigit():
            self.send_error(int(how))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and how != "ignore-range" else 0
        content = self.server.content
        if start and start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[: half - 100])
        if how == "stall":
            time.sleep(0.1)  # the next bytes come as a small piece of their own
        self.wfile.write(body[half - 100 : half])
        if how == "stall":
            self.server.go_on.wait(20)
        if how == "reset":  # a TCP reset instead of an orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            return
        if how != "cut":
            self.wfile.write(body[half:])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "BACKOFF_SECONDS", (0.0, 0.0, 0.0))
    with FileServer() as file_server:
        threading.Thread(target=file_server.serve_forever, args=(0.02,), daemon=True).start()
        yield file_server
        file_server.go_on.set()
        file_server.shutdown()


@pytest.fixture
def data(server: FileServer, tmp_path: Path) -> Data:
    return Data(cache=str(tmp_path / "cache"), base_url=server.url)


def folder(data: Data) -> Path:
    return Path(data.cache) / "data" / "ants" / BLOB


def left(data: Data) -> dict[str, int]:
    """The files of the cache's folder, without the lock, and their sizes."""
    return {p.name: p.stat().st_size for p in folder(data).iterdir() if p.suffix != ".lock"}


def fault(dataset: Dataset, data: Data, split: str = "train") -> str:
    with pytest.raises(BadInput) as error:
        locate(dataset, data, split)
    (line,) = error.value.faults
    assert "\n" not in line
    return line


def downloaded(data: Data) -> Source:
    path = folder(data) / "train.txt"
    return Source(path, hashlib.sha256(CONTENT).hexdigest(), BLOB, pinned=True, origin="download")


class TestFolders:
    def test_the_datasets_folder_comes_before_the_root_itself(self, tmp_path: Path) -> None:
        data = Data(root=str(tmp_path))
        (tmp_path / "train.txt").write_bytes(CONTENT)
        assert locate(DATASET, data, "train").path == tmp_path / "train.txt"
        (tmp_path / "ants").mkdir()
        (tmp_path / "ants" / "train.txt").write_bytes(CONTENT)
        assert locate(DATASET, data, "train") == Source(
            path=tmp_path / "ants" / "train.txt",
            sha256=hashlib.sha256(CONTENT).hexdigest(),
            blob=BLOB,
            pinned=True,
            origin="local",
        )

    def test_other_content_is_accepted_as_not_pinned(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "train.txt").write_bytes(b"a||b\n")
        source = locate(DATASET, Data(root=str(tmp_path)), "train")
        assert (source.pinned, source.origin, source.blob) == (False, "local", blob_id(b"a||b\n"))
        assert f"{source.path} is not the papers' train.txt: blob id {source.blob}, not {BLOB}" in caplog.text

    def test_a_file_without_pin_is_accepted_quietly(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "valid.txt").write_bytes(b"a||b\n")
        assert not locate(DATASET, Data(root=str(tmp_path)), "valid").pinned
        assert caplog.text == ""

    def test_an_absolute_name_needs_no_root_and_is_compared_with_its_pin(self, tmp_path: Path) -> None:
        path = tmp_path / "train.txt"
        path.write_bytes(CONTENT)
        files = Files(train=str(path), valid="valid.txt", test="test.txt")
        source = locate(replace(DATASET, files=files), Data(root="/nowhere"), "train")
        assert (source.path, source.pinned, source.origin) == (path, True, "local")

    def test_a_dataset_finds_the_files_that_it_shares_with_another(self, tmp_path: Path) -> None:
        """They lie in the folder that is named as where they are downloaded from."""
        for folder, content in (("", b"1"), ("remote ants", b"2"), ("ants", b"3")):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "train.txt").write_bytes(content)
        for folder in ("ants", "remote ants", ""):
            found = locate(DATASET, Data(root=str(tmp_path)), "train").path
            assert found == tmp_path / folder / "train.txt"
            found.unlink()

    def test_home_is_understood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "train.txt").write_bytes(CONTENT)
        assert locate(DATASET, Data(root="~"), "train").path == tmp_path / "train.txt"

    def test_a_missing_file_names_all_places_and_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "ants").mkdir()
        for name in ("ants/valid.txt", "ants/train.json", "trains.txt"):
            (tmp_path / name).write_bytes(CONTENT)
        assert fault(DATASET, Data(root=str(tmp_path))) == (
            f"dataset 'ants': no file 'train.txt' for its train split: looked for {tmp_path}/ants/train.txt, "
            f"{tmp_path}/remote ants/train.txt, {tmp_path}/train.txt; did you mean 'trains.txt'? "
            "(valid: trains.txt, valid.txt); name a file that is there with dataset.files.train=FILE, "
            "give another folder with data.root=FOLDER or leave data.root out to download the papers' file"
        )

    def test_a_missing_root_and_a_missing_absolute_file(self, tmp_path: Path) -> None:
        gone = tmp_path / "gone"
        looked = ", ".join(f"{gone}/{place}test.txt" for place in ("ants/", "remote ants/", ""))
        assert f"looked for {looked} (valid: none)" in fault(DATASET, Data(root=str(gone)), "test")
        files = Files(train=str(gone / "a.txt"), valid="valid.txt", test="test.txt")
        line = fault(replace(DATASET, files=files), Data())
        assert f"no file 'a.txt' for its train split: looked for {gone}/a.txt (valid: none)" in line

    def test_a_directory_of_that_name_is_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").mkdir()
        assert "no file 'train.txt'" in fault(DATASET, Data(root=str(tmp_path)))

    def test_a_root_never_downloads(self, server: FileServer, data: Data, tmp_path: Path) -> None:
        fault(DATASET, replace(data, root=str(tmp_path)))
        assert server.requests == []


class TestEmbedded:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        package = tmp_path / "package"
        (package / "ants").mkdir(parents=True)
        (package / "ants" / "train.txt").write_bytes(CONTENT)
        monkeypatch.setattr(sources, "EMBEDDED", package)
        return package

    def test_found_without_and_with_a_root_that_lacks_it(self, package: Path, tmp_path: Path) -> None:
        for root in (None, str(tmp_path)):
            source = locate(EMBEDDED, Data(root=root), "train")
            assert (source.path, source.origin) == (package / "ants" / "train.txt", "embedded")
            assert not source.pinned

    def test_a_root_that_has_it_comes_first(self, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_bytes(b"a||b\n")
        assert locate(EMBEDDED, Data(root=str(tmp_path)), "train").origin == "local"

    def test_missing_in_the_package(self, package: Path) -> None:
        assert fault(EMBEDDED, Data(), "test") == (
            f"dataset 'ants': no file 'test.txt' for its test split: looked for {package}/ants/test.txt; "
            f"did you mean 'train.txt'? (valid: train.txt); name a file that is there with "
            f"dataset.files.test=FILE, give another folder with data.root=FOLDER"
        )

    def test_a_dataset_with_a_remote_is_not_sought_in_the_package(self, server: FileServer, data: Data) -> None:
        assert locate(DATASET, data, "train").origin == "download"


class TestDownload:
    def test_success_then_the_cache(self, server: FileServer, data: Data) -> None:
        assert locate(DATASET, data, "train") == downloaded(data)
        assert left(data) == {"train.txt": len(CONTENT)}
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.requests == [("/data/remote%20ants/train.txt", None)]

    def test_an_interruption_is_resumed(self, server: FileServer, data: Data) -> None:
        server.script = ["cut"]
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == [None, f"bytes={HALF}-"]
        assert left(data) == {"train.txt": len(CONTENT)}

    @pytest.mark.parametrize("how", ["reset", "drop"])
    def test_a_connection_that_breaks_is_tried_again(self, server: FileServer, data: Data, how: str) -> None:
        server.script = [how, how]
        assert locate(DATASET, data, "train") == downloaded(data)
        assert len(server.requests) == 3

    def test_a_silent_server_is_left(self, server: FileServer, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "TIMEOUT_SECONDS", 0.2)
        server.script = ["stall"]
        began = time.monotonic()
        assert locate(DATASET, data, "train") == downloaded(data)
        assert time.monotonic() - began < 5
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_server_that_ignores_ranges(self, server: FileServer, data: Data) -> None:
        server.script = ["cut", "ignore-range"]
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_busy_server_is_asked_again(self, server: FileServer, data: Data) -> None:
        server.script = ["503", "429"]
        assert locate(DATASET, data, "train") == downloaded(data)
        assert len(server.requests) == 3

    def test_always_too_short(self, server: FileServer, data: Data) -> None:
        server.script = ["cut"] * 9
        line = fault(DATASET, data)
        assert len(server.requests) == 4
        (name, size), *others = left(data).items()
        assert (name, others) == ("train.txt.part", [])
        assert HALF < size < len(CONTENT)
        assert re.fullmatch(
            r"dataset 'ants': 'train\.txt' \(train split\): the download from "
            r"http://127\S+/data/remote%20ants/train\.txt broke off 4 times \(\d+ of \d+ bytes arrived\); "
            r"run again to go on with it, or give a folder that holds the file with data\.root=FOLDER",
            line,
        )
        server.script = []
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges[-1] == f"bytes={size}-"

    def test_wrong_content(self, server: FileServer, data: Data) -> None:
        server.content = b"<html>please log in</html>"
        assert fault(DATASET, data) == (
            f"dataset 'ants': 'train.txt' (train split): wrong content from "
            f"{server.url}/remote%20ants/train.txt: "
            f"expected blob id {BLOB}, got {blob_id(server.content)} (26 bytes); "
            f"check data.base_url and the network's proxy, or give a folder that holds the file with "
            f"data.root=FOLDER"
        )
        assert left(data) == {}
        assert len(server.requests) == 1

    def test_a_damaged_part_is_dropped(self, server: FileServer, data: Data) -> None:
        folder(data).mkdir(parents=True)
        (folder(data) / "train.txt.part").write_bytes(b"other bytes")
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == ["bytes=11-", None]

    @pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
    def test_a_part_that_is_too_long_is_dropped(self, server: FileServer, data: Data, part: bytes) -> None:
        folder(data).mkdir(parents=True)
        (folder(data) / "train.txt.part").write_bytes(part)
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == [f"bytes={len(part)}-", None]

    def test_not_found(self, server: FileServer, data: Data) -> None:
        server.script = ["404"]
        assert fault(DATASET, data) == (
            f"dataset 'ants': 'train.txt' (train split): {server.url}/remote%20ants/train.txt answered "
            f"404 Not Found; check data.base_url, or give a folder that holds the file with data.root=FOLDER"
        )
        assert left(data) == {}
        assert len(server.requests) == 1

    def test_a_corrupt_cached_file_is_replaced(
        self, server: FileServer, data: Data, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = locate(DATASET, data, "train").path
        path.write_bytes(CONTENT[:-1] + b"!")
        assert locate(DATASET, data, "train") == downloaded(data)
        assert len(server.requests) == 2
        assert f"{path} is corrupt: it is removed and downloaded again" in caplog.text

    def test_a_corrupt_cached_file_does_not_survive_a_failed_download(self, server: FileServer, data: Data) -> None:
        locate(DATASET, data, "train").path.write_bytes(b"junk")
        server.script = ["404"]
        fault(DATASET, data)
        assert left(data) == {}

    def test_a_file_without_pin_is_not_downloaded(self, server: FileServer, data: Data) -> None:
        assert fault(DATASET, data, "valid") == (
            "dataset 'ants': 'valid.txt' (valid split) has no pinned content, so it can't be downloaded; "
            "did you mean 'train.txt'? (valid: train.txt); give a folder that holds it with data.root=FOLDER"
        )
        assert server.requests == []

    def test_a_file_url(self, data: Data, tmp_path: Path) -> None:
        (tmp_path / "remote ants").mkdir()
        (tmp_path / "remote ants" / "train.txt").write_bytes(CONTENT)
        assert locate(DATASET, replace(data, base_url=tmp_path.as_uri()), "train") == downloaded(data)


class TestNoNetwork:
    def out_of_reach(self, data: Data, reason: str) -> str:
        return (
            f"dataset 'ants': 'train.txt' (train split) is not in the cache {folder(data)} and "
            f"{data.base_url}/remote%20ants/train.txt is out of reach ({reason}); give a folder that "
            f"holds it with data.root=FOLDER, use the embedded dataset=mini model=gpt2-nano, or run "
            f"`lodarepro data prepare ants` where there is a network and copy the cache over"
        )

    def test_refused_ends_at_once(self, server: FileServer, data: Data) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # bound but not listening: nobody else gets the port meanwhile
            data = replace(data, base_url=f"http://127.0.0.1:{closed.getsockname()[1]}")
            assert fault(DATASET, data) == self.out_of_reach(data, "[Errno 111] Connection refused")
        assert left(data) == {}

    def test_an_unknown_name_is_asked_for_once(self, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def unknown(host: str, *_: Any, **__: Any) -> None:
            asked.append(host)
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        monkeypatch.setattr(sources, "BACKOFF_SECONDS", (60.0,))
        data = replace(data, base_url="http://data.invalid")
        assert fault(DATASET, data) == self.out_of_reach(data, "[Errno -2] Name or service not known")
        assert asked == ["data.invalid"]

    def test_a_base_url_that_is_none(self, data: Data) -> None:
        assert fault(DATASET, replace(data, base_url="mirror")) == (
            "dataset 'ants': 'train.txt' (train split): data.base_url: unknown url type: "
            "'mirror/remote%20ants/train.txt'; give the URL of a folder"
        )


class TestDisk:
    """Root may write anywhere and disks are big, so the failing calls are simulated."""

    def failing(self, monkeypatch: pytest.MonkeyPatch, number: int, *, suffix: str, on: str) -> None:
        """Let Path.open, or the second write to the file it opens, fail for names with a suffix."""
        original: Callable[..., Any] = Path.open

        def refuse(*_: Any) -> None:
            raise OSError(number, os.strerror(number))

        def open_or_fail(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path.suffix != suffix:
                return original(path, *args, **kwargs)
            if on == "open":
                refuse()
            return FailingFile(original(path, *args, **kwargs), refuse)

        monkeypatch.setattr(Path, "open", open_or_fail)

    def cannot_be_kept(self, data: Data, reason: str) -> str:
        return (
            f"dataset 'ants': 'train.txt' (train split) cannot be kept in the cache {folder(data)}: "
            f"{reason}; make room or give another folder with data.cache=FOLDER"
        )

    def test_a_read_only_cache(self, server: FileServer, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            self.failing(patch, errno.EROFS, suffix=".lock", on="open")
            assert fault(DATASET, data) == self.cannot_be_kept(data, "Read-only file system")
        assert left(data) == {}
        assert server.requests == []

    def test_a_read_only_cache_that_has_the_file_will_do(
        self, server: FileServer, data: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        locate(DATASET, data, "train")
        with monkeypatch.context() as patch:
            self.failing(patch, errno.EROFS, suffix=".lock", on="open")
            assert locate(DATASET, data, "train") == downloaded(data)

    def test_a_cache_below_a_file(self, data: Data, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("")
        assert fault(DATASET, data) == self.cannot_be_kept(data, "Not a directory")

    def test_a_full_disk_leaves_a_part_that_is_resumed(
        self, server: FileServer, data: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            self.failing(patch, errno.ENOSPC, suffix=".part", on="write")
            assert fault(DATASET, data) == self.cannot_be_kept(data, "No space left on device")
        (name, size), *others = left(data).items()
        assert (name, others) == ("train.txt.part", [])
        assert 0 < size < len(CONTENT)
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == [None, f"bytes={size}-"]


class FailingFile:
    """A file whose second write fails."""

    def __init__(self, file: Any, refuse: Callable[[], None]) -> None:
        self.file = file
        self.refuse = refuse
        self.writes = 0

    def __enter__(self) -> "FailingFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, piece: bytes) -> None:
        self.writes += 1
        if self.writes > 1:
            self.refuse()
        self.file.write(piece)

    def flush(self) -> None:
        self.file.flush()


class TestProcesses:
    """A second process waits for the first, and goes on where a killed one was."""

    SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from lodarepro.config import Data, Dataset, Files, Pin
from lodarepro.data.sources import locate
files = Files(train="train.txt", valid="valid.txt", test="test.txt")
pins = {"train.txt": Pin(blob=sys.argv[3], examples=4000)}
dataset = Dataset("ants", "e2e", "e2e", files, remote="remote ants", pins=pins)
print(locate(dataset, Data(cache=sys.argv[1], base_url=sys.argv[2]), "train").path)
"""

    @pytest.fixture
    def start(self, data: Data) -> Iterator[Callable[[], subprocess.Popen[str]]]:
        started = []

        def one() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", self.SCRIPT, data.cache, data.base_url, BLOB]
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"no_proxy": "*"},
            )
            started.append(process)
            return process

        yield one
        for process in started:
            process.kill()
            process.communicate()

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"waited 20 s for {what}"
            time.sleep(0.01)

    def test_two_at_once_download_once(
        self, server: FileServer, data: Data, start: Callable[[], subprocess.Popen[str]]
    ) -> None:
        server.script = ["stall"]
        first = start()
        self.until(lambda: server.requests, "the first request")
        second = start()
        assert second.stderr is not None
        said = second.stderr.readline()
        assert f"waiting for another process that holds {folder(data)}/train.txt.lock" in said
        server.go_on.set()
        for process in (first, second):
            assert process.communicate(timeout=20)[0].strip() == str(folder(data) / "train.txt")
            assert process.returncode == 0
        assert server.ranges == [None]
        assert left(data) == {"train.txt": len(CONTENT)}

    def test_a_killed_downloader_is_taken_over(
        self, server: FileServer, data: Data, start: Callable[[], subprocess.Popen[str]]
    ) -> None:
        server.script = ["stall"]
        process = start()
        part = folder(data) / "train.txt.part"
        self.until(lambda: part.exists() and part.stat().st_size == HALF, "half of the file")
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=20) == -signal.SIGKILL
        assert left(data) == {"train.txt.part": HALF}
        assert locate(DATASET, data, "train") == downloaded(data)
        assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_download_is_logged(server: FileServer, data: Data, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.script = ["cut"]
    locate(DATASET, data, "train")
    url = f"{server.url}/remote%20ants/train.txt"
    assert [record.message for record in caplog.records] == [
        f"downloading {url}",
        f"dataset 'ants': 'train.txt' (train split): the download broke off ({HALF} of {len(CONTENT)} bytes arrived)",
        f"downloading {url} from byte {HALF} on",
    ]
