"""The errors shown to users, each with its exit code and a hint."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes, as documented in the README."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    DATA = 3
    GUARD = 4
    MISMATCH = 5
    INTERRUPTED = 130


class CmpaglError(Exception):
    """One sentence that says what went wrong and where; `hint` says what to do."""

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


class BusyError(CmpaglError):
    """Another process is writing the same artefact; the message names it."""


class LostPeerError(CmpaglError):
    """Another process of the same training has ended."""


class UsageError(CmpaglError):
    """Invalid or contradictory arguments."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """An invalid recipe or override."""


class DataError(CmpaglError):
    """Invalid annotations, images or prepared data set."""

    exit_code = ExitCode.DATA


class GuardError(CmpaglError):
    """Refused because the number would be misleading (choosing on the test split, mixing stamps)."""

    exit_code = ExitCode.GUARD


class MismatchError(CmpaglError):
    """Two artefacts do not belong together (features of another model, weights of another shape)."""

    exit_code = ExitCode.MISMATCH


class InterruptedByUserError(CmpaglError):
    """Stopped by the user; the message says how to continue."""

    exit_code = ExitCode.INTERRUPTED


def check_format(where: object, found: object, ours: int, hint: str, kind: type[CmpaglError] = DataError) -> None:
    """Raise `kind` for a file of another format version; hint: the way out, unless a newer cmpagl wrote it."""
    if type(found) is int and found == ours:
        return
    is_newer = type(found) is int and found > ours
    raise kind(
        f"{where}: format_version is {found!r}, this cmpagl reads {ours}",
        hint="update cmpagl: a newer one wrote this" if is_newer else hint,
    )
