"""Locations of data sets, runs and indexes, and the defaults among them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import newest, write_text

ArtefactKind = Literal["data", "runs", "indexes"]

MARKERS: dict[ArtefactKind, str] = {"data": "manifest.json", "runs": "run.json", "indexes": "index.json"}
_MAKERS: dict[ArtefactKind, str] = {
    "data": "prepare one with `cmpagl prepare`",
    "runs": "train one with `cmpagl train`",
    "indexes": "build one with `cmpagl index DIR`",
}
_SELECTED_FILE = ".selected"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Workspace:
    """A folder with `data/`, `runs/` and `indexes/`, and `models/` for published weights."""

    root: Path

    @classmethod
    def locate(cls, given: Path | None = None) -> Workspace:
        """The given folder, else `CMPAGL_WORKSPACE`, else the current folder.

        Raises UsageError if the current folder was deleted, so that relative paths mean nothing.
        """
        try:
            Path.cwd()
        except OSError as error:
            raise UsageError("the current folder no longer exists", hint="change to another one") from error
        if given is not None:
            return cls(given)
        named = os.environ.get("CMPAGL_WORKSPACE")
        return cls(Path(named) if named else Path())

    @property
    def cache(self) -> Path:
        """Folder of caches, which can be deleted."""
        return self.root / "cache"

    @property
    def models(self) -> Path:
        """Folder in which weights of published models are searched for."""
        return self.root / "models"

    def folder(self, kind: ArtefactKind, name: str) -> Path:
        """Folder of an artefact of that name. Raises UsageError for a name that could leave the workspace."""
        if not _SAFE_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a valid name", hint="use letters, digits, '.', '_' and '-' (at most 100)"
            )
        return self.root / kind / name

    def find(self, kind: ArtefactKind, name_or_path: str | Path | None = None) -> Path:
        """The folder of an artefact by name or path; by default the selected data set, or the newest artefact.

        Raises DataError, which says how to create one, if there is none.
        """
        marker = MARKERS[kind]
        if name_or_path is None:
            selected = self._selected() if kind == "data" else None
            latest = newest(self.root / kind, marker) if selected is None else selected
            if latest is None:
                raise DataError(f"there is nothing in {self.root / kind} yet", hint=_MAKERS[kind])
            return latest
        for candidate in (self.root / kind / str(name_or_path), Path(name_or_path)):
            if (candidate / marker).is_file():
                return candidate
        known = sorted(path.parent.name for path in (self.root / kind).glob(f"*/{marker}"))
        hint = f"available: {', '.join(known)}" if known else _MAKERS[kind]
        raise DataError(f"no {marker} under {name_or_path} or {self.root / kind / str(name_or_path)}", hint=hint)

    def select_data(self, name: str) -> None:
        """Make a data set the default: the last one passed to `prepare`.

        Raises CmpaglError if writing fails.
        """
        write_text(self.root / "data" / _SELECTED_FILE, f"{name}\n")

    def _selected(self) -> Path | None:
        """The selected data set, if it still exists."""
        try:
            name = (self.root / "data" / _SELECTED_FILE).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        folder = self.root / "data" / name
        return folder if _SAFE_NAME.fullmatch(name) and (folder / MARKERS["data"]).is_file() else None
