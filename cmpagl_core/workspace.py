"""Where data sets, runs and indexes live, and which one is meant when none is named."""

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
    "data": "make one with `cmpagl prepare`",
    "runs": "make one with `cmpagl train`",
    "indexes": "make one with `cmpagl index DIR`",
}
_SELECTED_FILE = ".selected"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Workspace:
    """A folder with `data/`, `runs/` and `indexes/` in it, and `models/` for weights of others."""

    root: Path

    @classmethod
    def locate(cls, given: Path | None = None) -> Workspace:
        """The folder given, else `CMPAGL_WORKSPACE`, else the current folder.

        Raises UsageError when the current folder was deleted: no relative path means anything then.
        """
        try:
            Path.cwd()
        except OSError as error:
            raise UsageError("the current folder is not there any more", hint="go to one that is") from error
        if given is not None:
            return cls(given)
        named = os.environ.get("CMPAGL_WORKSPACE")
        return cls(Path(named) if named else Path())

    @property
    def cache(self) -> Path:
        """Where what can be made again is kept."""
        return self.root / "cache"

    @property
    def models(self) -> Path:
        """Where the weights of other people's models are looked for."""
        return self.root / "models"

    def folder(self, kind: ArtefactKind, name: str) -> Path:
        """Where an artefact of that name belongs. Raises UsageError for a name that could leave the workspace."""
        if not _SAFE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a name", hint="use letters, digits, '.', '_' and '-' (at most 100)")
        return self.root / kind / name

    def find(self, kind: ArtefactKind, name_or_path: str | Path | None = None) -> Path:
        """The folder of an artefact by name or path; else the data set that was selected, or the newest one.

        Raises DataError when there is none, saying how to make one.
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
        hint = f"there is {', '.join(known)}" if known else _MAKERS[kind]
        raise DataError(f"no {marker} under {name_or_path} or {self.root / kind / str(name_or_path)}", hint=hint)

    def select_data(self, name: str) -> None:
        """Make a data set the one that is meant when none is named: the last that `prepare` was asked for.

        Raises CmpaglError when the disk refuses.
        """
        write_text(self.root / "data" / _SELECTED_FILE, f"{name}\n")

    def _selected(self) -> Path | None:
        """The data set that was selected, where it still is."""
        try:
            name = (self.root / "data" / _SELECTED_FILE).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        folder = self.root / "data" / name
        return folder if _SAFE_NAME.fullmatch(name) and (folder / MARKERS["data"]).is_file() else None
