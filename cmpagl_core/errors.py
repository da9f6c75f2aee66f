"""The errors that a user may meet, each with its exit code and the way out."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees; the contract is in the README under "Exit codes"."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    DATA = 3
    GUARD = 4
    MISMATCH = 5
    INTERRUPTED = 130


class CmpaglError(Exception):
    """One sentence that says what went wrong and where; `hint` says the way out."""

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


class BusyError(CmpaglError):
    """Another process is writing the same thing; it is named."""


class UsageError(CmpaglError):
    """A command was called in a way that cannot work."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A recipe or an override is wrong."""


class DataError(CmpaglError):
    """Annotations, images or a prepared data set are wrong."""

    exit_code = ExitCode.DATA


class GuardError(CmpaglError):
    """Refused because the number would mislead (choosing on the test split, mixing stamps)."""

    exit_code = ExitCode.GUARD


class MismatchError(CmpaglError):
    """Two artefacts do not belong together (features of another model, weights of another shape)."""

    exit_code = ExitCode.MISMATCH


class InterruptedByUserError(CmpaglError):
    """Stopped by the user; the message says how to go on."""

    exit_code = ExitCode.INTERRUPTED
