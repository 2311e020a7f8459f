"""Files that hold records: a path as a config writes it becomes files, and a file becomes numbered lines of text."""

import contextlib
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from isal import igzip, isal_zlib

Tell = Callable[[int], None]  # is told of bytes read, as they lie in the file

_BLOCK = 1 << 17
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def find(path: str) -> list[Path]:
    """The files that `path` names, sorted: a file, a glob pattern, or a directory (its files, all levels, none hidden).

    `$NAME` and `${NAME}` are environment variables, `~` is the home directory, and `package:name/inside.csv` is a file
    inside an installed package.

    Raises:
      ValueError: a variable is not set, a package is not installed, or nothing is there.
    """
    expanded = expand(path)
    if os.path.isdir(expanded):
        inside = (Path(folder) / name for folder, _, names in os.walk(expanded) for name in names)
        found = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(expanded).parts)]
        problem = "the directory holds no file"
    elif glob.has_magic(expanded) and not os.path.exists(expanded):
        found = [Path(name) for name in glob.glob(expanded, recursive=True) if os.path.isfile(name)]
        problem = "no file matches the pattern"
    else:
        found = [Path(expanded)] if os.path.isfile(expanded) else []
        problem = "no such file"
    if not found:
        meaning = "" if expanded == path else f" (meaning {expanded!r})"
        raise ValueError(f"path {path!r}{meaning}: {problem}; expected a file, a glob pattern or a directory of files")
    return sorted(found)


def expand(path: str) -> str:
    """A path as a config writes it, without its variables; see `find`."""
    if path.startswith("package:"):
        package, _, inside = path.removeprefix("package:").partition("/")
        try:
            return str(resources.files(package).joinpath(inside))
        except ModuleNotFoundError:
            raise ValueError(f"path {path!r}: the package {package!r} is not installed; install it with pip") from None

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(
                f"path {path!r}: the environment variable {name} is not set; run `export {name}=DIRECTORY`"
            )
        return os.environ[name]

    return os.path.expanduser(_VARIABLE.sub(value, path))


def nobody(read: int) -> None:
    """A Tell that nobody asked for."""


def lines(file: Path, tell: Tell = nobody) -> Iterator[tuple[int, str, ValueError | None]]:
    """Yields (row, line, wrong) of a UTF-8 file, decompressed where its name ends in `.gz` or `.zst`.

    Rows count from 1, and a line keeps its end. `wrong` says what bytes are not UTF-8; the line has U+FFFD for them.

    Raises:
      ValueError: a compressed stream is broken or ends early, with file and row; what came before it was yielded.
    """
    row = 0
    # Read as bytes and decode line by line: a text stream decodes in blocks and cannot say which line was wrong.
    with _open(file, tell) as stream:
        try:
            for row, line in enumerate(stream, start=1):
                yield row, *_decode(line, "utf-8-sig" if row == 1 else "utf-8", f"{file}:{row}")
        except (EOFError, igzip.BadGzipFile, isal_zlib.error, _ZstandardError) as error:  # type: ignore[misc]
            kind = {".gz": "gzip", ".zst": "zstandard"}[file.suffix]
            raise ValueError(f"{file}:{row + 1}: broken or truncated {kind} ({error}); copy the file again") from None


def digest(file: Path) -> bytes:
    """A hash of a file's bytes."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def _decode(line: bytes, encoding: str, where: str) -> tuple[str, ValueError | None]:
    try:
        return line.decode(encoding), None
    except UnicodeDecodeError as error:
        wrong = ValueError(
            f"{where}: byte {error.object[error.start]:#04x} at column {error.start + 1} is not UTF-8; "
            "convert the file, for example with `iconv -f LATIN1 -t UTF-8`"
        )
        return line.decode(encoding, "replace"), wrong


@contextlib.contextmanager
def _open(file: Path, tell: Tell) -> Iterator[io.BufferedIOBase]:
    with io.BufferedReader(_Told(file, tell), _BLOCK) as raw:
        if file.suffix == ".gz":
            with igzip.IGzipFile(fileobj=raw) as stream:  # gzip's own takes three times as long
                yield stream
        elif file.suffix == ".zst":
            with io.BufferedReader(_Zstandard(raw), _BLOCK) as stream:
                yield stream
        else:
            yield raw


class _Told(io.FileIO):
    """A file that tells how many bytes are read from it."""

    def __init__(self, file: Path, tell: Tell):
        super().__init__(file)
        self._tell = tell

    def readinto(self, buffer) -> int:
        read = super().readinto(buffer)
        self._tell(read)
        return read


class _ZstandardError(Exception):
    """A zstandard stream that is broken or ends early."""


class _Zstandard(io.RawIOBase):
    """The decompressed bytes of an open file, frame after frame.

    `zstandard`'s own reader takes the end of the file for the end of the stream, wherever that comes.
    """

    def __init__(self, file: io.BufferedIOBase):
        import zstandard

        self._library = zstandard
        self._file = file
        self._frame: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(1 << 14)
            if self._frame is None and not self._compressed:
                return 0
            if not self._compressed:
                raise _ZstandardError("the stream ends inside a frame")
            self._decompress()
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _decompress(self) -> None:
        if self._frame is None:
            # as far as `zstd --long=31` goes: a decoder refuses windows above 128 MiB unless told
            self._frame = self._library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(self._compressed))
        except self._library.ZstdError as error:
            raise _ZstandardError(str(error)) from None
        self._compressed = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
