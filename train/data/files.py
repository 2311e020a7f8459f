"""Files that hold records: a path as a config writes it becomes files, and a file becomes numbered lines of text."""

import glob
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

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


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line with its end) of a UTF-8 file, through gzip where the name ends in `.gz`.

    Raises:
      ValueError: bytes that are not UTF-8, or a gzip stream that is broken or ends early; both with file and line.
    """
    row = 0
    # Read as bytes and decode line by line: a text stream decodes in blocks and cannot say which line was wrong.
    with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
        try:
            for row, line in enumerate(stream, start=1):
                yield row, line.decode("utf-8-sig" if row == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file}:{row}: byte {error.object[error.start]:#04x} at column {error.start + 1} is not UTF-8; "
                "convert the file, for example with `iconv -f LATIN1 -t UTF-8`"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{file}:{row + 1}: broken or truncated gzip ({error}); copy the file again") from None
