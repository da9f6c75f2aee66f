"""Entry point of the `cmpagl` command: sets up signals and streams before anything slow is imported.

Only the standard library is imported at the top, so that Ctrl-C is handled even in the first tenths of a second.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn, TextIO

from cmpagl_core.interruption import Interruption

_INTERRUPTED = 130
_FAILURE = 1
_SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    interruption = Interruption()
    try:
        interruption.listen()
        prepare_streams()
        let_waiting_threads_sleep()
        from cmpagl_cli.app import app

        app()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else _FAILURE
    except KeyboardInterrupt:
        _say("error: interrupted")
        code = _INTERRUPTED
    except OSError as error:  # of Typer's own output, such as a help text
        silence(sys.stdout)
        _say(f"error: the output cannot be written ({error.strerror or error})")
        code = _FAILURE
    asked = interruption.asked
    interruption.leave()
    code = _flushed(code)
    if asked:  # if an import was interrupted, Python would exit by SIGINT whatever the code
        os._exit(code)
    sys.exit(code)


def prepare_streams() -> None:
    """Replace closed streams, and write characters outside a stream's encoding as escapes.

    Otherwise a file opened while stdout is closed would become stdout.
    """
    with suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # until the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def let_waiting_threads_sleep() -> None:
    """Unless the user decided otherwise, torch's threads sleep while they wait for each other (read on its import).

    By default OpenMP's threads spin, and beside one busy process they take the core from the thread they wait for.
    """
    if not any(name in os.environ for name in _SLEEPING_THREADS):
        os.environ.update(_SLEEPING_THREADS)


def silence(stream: TextIO) -> None:
    """Discard what a stream could not write and all that follows; else Python would fail again at exit."""
    with suppress(OSError, ValueError):
        handle = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, stream.fileno())
        os.close(handle)


def _say(sentence: str) -> None:
    try:
        print(sentence, file=sys.stderr, flush=True)  # noqa: T201  # Typer may not be imported yet
    except OSError:
        silence(sys.stderr)


def _flushed(code: int) -> int:
    """Flush the streams and return the exit code, which becomes that of a failure if flushing fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)
            code = code or _FAILURE
        except ValueError:  # closed by someone else
            pass
    return code


if __name__ == "__main__":
    main()
