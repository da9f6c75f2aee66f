"""`log.jsonl`: one training event per line, kept in step with the state from which training resumes."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import parse_json

_DIGITS = 6


class Journal:
    """Appends events; every line is complete or absent. As a context manager it closes the file."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Append after the first `keep_bytes`; the rest belongs to steps that will be repeated and is dropped."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)
            if self._stream.tell() > keep_bytes:
                os.truncate(self._stream.fileno(), keep_bytes)
                self._stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise _cannot_write(path, error) from error

    @property
    def bytes(self) -> int:
        """Length of the log so far."""
        return self._stream.tell()

    def write(self, event: str, **figures: Any) -> None:
        """Add one line. Numbers are rounded to six digits; those that are not finite become null."""
        line = json.dumps({"event": event, **_plain(figures)}, ensure_ascii=False, allow_nan=False) + "\n"
        content, start = line.encode("utf-8"), self.bytes
        try:
            if self._stream.write(content) != len(content):
                os.truncate(self._stream.fileno(), start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class SilentJournal(Journal):
    """The log of a process that is not the one that writes."""

    def __init__(self) -> None:
        pass

    @property
    def bytes(self) -> int:
        return 0

    def write(self, event: str, **figures: Any) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log. Raises DataError naming a line that is not an event.

    A last line without its end is what a killed training was writing, and is left out.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    event = parse_json(line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}: not UTF-8 text") from error
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not valid JSON") from error
                if not isinstance(event, dict) or "event" not in event:
                    raise DataError(f"{path}:{number}: not an event")
                yield event
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _cannot_write(path: Path, error: OSError) -> CmpaglError:
    return CmpaglError(f"cannot write {path} ({error.strerror or error})", hint="free the disk, then use --resume")
