"""Where a split's file comes from: the package, a local folder or a pinned download.

A download is named by the git blob id of its content (protocol section 1), so a file of the cache
is right by its content or not there at all: bytes arrive in `<file>.part`, are checked, and are
renamed. `<file>.lock` is held by `flock` meanwhile, which a process's death frees.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from lodarepro.config import Data, Dataset
from lodarepro.errors import BadInput, nearest

logger = logging.getLogger(__name__)

T = TypeVar("T")

EMBEDDED = Path(__file__).parent
"""folder of the data that the package carries: <dataset>/<file>"""
TIMEOUT_SECONDS = 20
"""longest silence of a server, when connecting and between two pieces"""
BACKOFF_SECONDS = (0.5, 1.0, 2.0)
"""waits before the second, third and fourth attempt of a download that broke off"""
CHUNK_BYTES = 1 << 16
"""largest piece of a download held in memory"""
MEND = "correct the file, give a good copy with data.root=FOLDER, or leave data.root out to download it"
"""the end of an error line about a file's content"""


@dataclass(frozen=True)
class Source:
    r"""A split's file, found and identified.

    Attributes:
        path: where it lies.
        sha256: of its bytes, in hexadecimal.
        blob: git blob id: SHA-1 of `blob <size>\0` and its bytes, in hexadecimal.
        pinned: whether the bytes are those that `Dataset.pins` names for the file.
        origin: `embedded` in the package, `local` (data.root or an absolute name), or `download`.
    """

    path: Path
    sha256: str
    blob: str
    pinned: bool
    origin: Literal["embedded", "local", "download"]


def locate(dataset: Dataset, data: Data, split: str) -> Source:
    """Find the file of a split; download it to the cache if it is nowhere else.

    Looked at in this order: the file name itself if absolute; `<data.root>/<dataset>/<file>`,
    `<data.root>/<remote>/<file>` and `<data.root>/<file>`; the package's own folder if the dataset has no remote;
    and only where `data.root` is not given, the cache `<data.cache>/data/<dataset>/<blob>/<file>` and the download
    from `<data.base_url>/<remote>/<file>`. A local file may hold other bytes than the pinned ones
    (`pinned` tells); a download may not.

    Args:
        dataset: file names, remote folder and pins.
        data: where to look.
        split: `train`, `valid` or `test`.

    Raises:
        BadInput: the file is missing, can't be read, can't be downloaded or can't be kept.
    """
    file: str = getattr(dataset.files, split)
    places: list[tuple[Path, Literal["embedded", "local"]]] = []
    if (absolute := Path(file).expanduser()).is_absolute():
        places = [(absolute, "local")]
    else:
        if data.root is not None:
            root = Path(data.root).expanduser()
            folders = dict.fromkeys((dataset.name, dataset.remote or "", ""))
            places = [(root / folder / file, "local") for folder in folders]
        if dataset.remote is None:
            places.append((EMBEDDED / dataset.name / file, "embedded"))
    for path, origin in places:
        if path.is_file():
            return _identify(path, dataset, origin=origin)
    if places:
        raise BadInput(_missing(dataset, split, [path for path, _ in places]))
    return _identify(_cached(dataset, data, split), dataset, origin="download")


def download_url(dataset: Dataset, data: Data, split: str) -> str | None:
    """The URL that `locate` would download a split from, or None where it would look here only."""
    file: str = getattr(dataset.files, split)
    local = Path(file).expanduser().is_absolute() or data.root is not None or dataset.remote is None
    if local or file not in dataset.pins or _holds(_cache_path(dataset, data, file), dataset.pins[file].blob):
        return None
    return _url(dataset, data, file)


def _cache_path(dataset: Dataset, data: Data, file: str) -> Path:
    return Path(data.cache).expanduser() / "data" / dataset.name / dataset.pins[file].blob / file


def _url(dataset: Dataset, data: Data, file: str) -> str:
    return f"{data.base_url.rstrip('/')}/{urllib.parse.quote(f'{dataset.remote}/{file}')}"


def _identify(path: Path, dataset: Dataset, *, origin: Literal["embedded", "local", "download"]) -> Source:
    content = _read(path)
    blob = _blob_id(content)
    pin = dataset.pins.get(path.name)
    if pin is not None and blob != pin.blob:
        logger.warning("%s is not the papers' %s: blob id %s, not %s", path, path.name, blob, pin.blob)
    pinned = pin is not None and blob == pin.blob
    return Source(path, hashlib.sha256(content).hexdigest(), blob, pinned, origin)


def _missing(dataset: Dataset, split: str, looked: list[Path]) -> str:
    """The error line for a file that no folder holds."""
    wanted = looked[0]
    # only files of the same kind: a folder of the user's may hold anything
    held = {
        path.name
        for folder in {place.parent for place in looked}
        if folder.is_dir()
        for path in folder.iterdir()
        if path.suffix == wanted.suffix and path.is_file()
    }
    download = "" if dataset.remote is None else " or leave data.root out to download the papers' file"
    return (
        f"dataset '{dataset.name}': no file '{wanted.name}' for its {split} split: looked for "
        f"{', '.join(map(str, looked))}{nearest(wanted.name, held)}; name a file that is there with "
        f"dataset.files.{split}=FILE, give another folder with data.root=FOLDER{download}"
    )


def read_text(path: Path) -> str:
    """Return the file's text, its line ends as they are.

    Raises:
        BadInput: the file can't be read, is not UTF-8 or holds nothing but white space.
    """
    content = _read(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the decoder counts from behind a byte order mark: counting its lines is right all the same
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}: line {line}: expected UTF-8 text, found other bytes; {MEND}") from error
    if not text.strip():
        raise BadInput(f"{path}: expected data, found an empty file; {MEND}")
    return text


def read_json(path: Path, schema: TypeAdapter[T]) -> T:
    """Return the file's JSON content in the form that a schema asks for; further keys are ignored.

    Raises:
        BadInput: as `read_text`; not JSON; or not in the schema's form (the first such place).
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: line {error.lineno}: expected JSON: {error.msg}; {MEND}") from error
    try:
        return schema.validate_python(content)
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors(include_url=False)[0])
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"]).lstrip(".")
        where = f"at {place or 'the top'} (counted from 0)"
        raise BadInput(f"{path}: {where}: {first['msg']}; {MEND}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read: {error.strerror}; mend that, or give another folder with data.root=FOLDER"
        ) from error


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _TransferError(Exception):
    """A transfer broke off; what has arrived is kept and another attempt can go on from there."""


def _cached(dataset: Dataset, data: Data, split: str) -> Path:
    """The path of a pinned file in the cache, downloaded if it is not there yet."""
    file: str = getattr(dataset.files, split)
    what = f"dataset '{dataset.name}': '{file}' ({split} split)"
    pin = dataset.pins.get(file)
    if pin is None:
        raise BadInput(
            f"{what} has no pinned content, so it can't be downloaded{nearest(file, dataset.pins)}; "
            f"give a folder that holds it with data.root=FOLDER"
        )
    path = _cache_path(dataset, data, file)
    if _holds(path, pin.blob):
        return path
    url = _url(dataset, data, file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{file}.lock")):
            if _holds(path, pin.blob):  # the process that we waited for has brought it
                return path
            if path.exists():
                logger.warning("%s is corrupt: it is removed and downloaded again", path)
                path.unlink()
            partial = path.with_name(f"{file}.part")
            _download(url, partial, blob=pin.blob, what=what)
            partial.replace(path)
    except OSError as error:  # of the disk: those of the network are dealt with where they arise
        raise BadInput(
            f"{what} cannot be kept in the cache {path.parent}: {error.strerror}; make room or give "
            f"another folder with data.cache=FOLDER"
        ) from error
    return path


def _holds(path: Path, blob: str) -> bool:
    return path.is_file() and _blob_id(_read(path)) == blob


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for another process; it stays, as removing it would be a race."""
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that holds %s", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, partial: Path, *, blob: str, what: str) -> None:
    """Bring a file to `partial`, going on where an earlier attempt or process broke off.

    Raises:
        BadInput: the server is out of reach, lacks the file, sends another one, or keeps breaking off.
        OSError: the file can't be written.
    """
    reason = ""
    for wait in (0.0, *BACKOFF_SECONDS):
        time.sleep(wait)
        try:
            resumed = _transfer(url, partial, what=what)
        except _TransferError as error:
            reason = str(error)
            logger.warning("%s: the download broke off (%s)", what, reason)
            continue
        content = _read(partial)
        if (got := _blob_id(content)) == blob:
            return
        partial.unlink()
        reason = f"wrong content from {url}: expected blob id {blob}, got {got} ({len(content)} bytes)"
        if not resumed:
            raise BadInput(
                f"{what}: {reason}; check data.base_url and the network's proxy, or give a folder that "
                f"holds the file with data.root=FOLDER"
            )
        # the part was another file's or damaged: once more from the start
        logger.warning("%s: %s; downloading all of it again", what, reason)
    raise BadInput(
        f"{what}: the download from {url} broke off {len(BACKOFF_SECONDS) + 1} times ({reason}); run again "
        f"to go on with it, or give a folder that holds the file with data.root=FOLDER"
    )


def _transfer(url: str, partial: Path, *, what: str) -> bool:
    """Append the rest of a file to `partial`, or write all of it where the server can't resume.

    Returns:
        Whether bytes of an earlier attempt were kept.
    """
    have = partial.stat().st_size if partial.exists() else 0
    response = _open(url, partial, have=have, what=what)
    # a status of None is a file:// URL's; only 206 says that the part sent starts where we asked
    resumed = have > 0 and response.status == HTTPStatus.PARTIAL_CONTENT
    length = response.headers["Content-Length"]
    received = 0
    with response, partial.open("ab" if resumed else "wb") as out:
        while piece := _receive(response):
            out.write(piece)
            out.flush()  # a killed process leaves what it had
            received += len(piece)
    if length is not None and received < int(length):
        raise _TransferError(f"{received} of {length} bytes arrived")
    return resumed


def _open(url: str, partial: Path, *, have: int, what: str) -> http.client.HTTPResponse:
    """The server's answer to a request for the bytes from `have` on; a file:// URL's looks alike."""
    logger.info("downloading %s%s", url, f" from byte {have} on" if have else "")
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        return response
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"{error.code} {error.reason}"
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()  # it has all bytes or more: not a part of this file
            raise _TransferError(answer) from error
        if error.code == HTTPStatus.TOO_MANY_REQUESTS or error.code >= 500:
            raise _TransferError(answer) from error
        raise BadInput(
            f"{what}: {url} answered {answer}; check data.base_url, or give a folder that holds the file "
            f"with data.root=FOLDER"
        ) from error
    except urllib.error.URLError as error:  # no name, no route, refused: trying again won't help
        raise BadInput(
            f"{what} is not in the cache {partial.parent} and {url} is out of reach ({error.reason}); give a "
            f"folder that holds it with data.root=FOLDER, use the embedded dataset=mini model=gpt2-nano, or "
            f"run `lodarepro data prepare {partial.parent.parent.name}` where there is a network and copy "
            f"the cache over"
        ) from error
    except ValueError as error:
        raise BadInput(f"{what}: data.base_url: {error}; give the URL of a folder") from error
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(repr(error)) from error


def _receive(response: http.client.HTTPResponse) -> bytes:
    """The next bytes as they arrive, none at the end."""
    try:
        return response.read1(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _TransferError(repr(error)) from error
