"""`cmpagl --help` in a process of its own against the import of typer and rich alone."""

from __future__ import annotations

import subprocess
import sys

from _measure import in_turns_s, report

PEER = "import typer, rich"


def run(code: str, *arguments: str) -> str:
    """A cold Python; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def main() -> int:
    ours = "from cmpagl_cli.entry import main; main()"
    if "retrieve" not in run(ours, "--help"):
        raise SystemExit("this is not the help")
    value, peer_value = in_turns_s(lambda: run(ours, "--help"), lambda: run(PEER), repeats=9)
    # At most twice the peer's time: a ratio of at least a half.
    return 0 if report("cmpagl --help, cold", value, "s", 0.5, PEER, peer_value) else 1


if __name__ == "__main__":
    sys.exit(main())
