"""Call the command line several times after one import of what it needs; used by test_streams.py.

Reads a JSON list of {"words", "encoding", "cwd", "is_anyone"} on stdin, and prints one of {"code", "output"}. Each call
is a fork with streams of that encoding; is_anyone: as a user who is not root.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from typing import Any, NoReturn

import huggingface_hub.file_download  # noqa: F401
import timm  # noqa: F401
import torchvision.ops  # noqa: F401

import cmpagl_core.doctor
import cmpagl_core.models.weights
import cmpagl_core.recipe_files  # noqa: F401
from cmpagl_cli.entry import main


def give_up_privileges() -> None:
    """As any user: root may else read everything (capset of nothing, by the third version of its header)."""
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def call(asked: dict[str, Any], file: int) -> NoReturn:
    os.dup2(file, 1)
    os.dup2(file, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=asked["encoding"], errors="strict")  # type: ignore[union-attr]
    os.chdir(asked["cwd"])
    sys.argv = ["cmpagl", *asked["words"]]
    if asked["is_anyone"]:
        give_up_privileges()
    code = 70
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    calls = json.load(sys.stdin)
    answers = []
    for one in calls:
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                call(one, said.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            answers.append({"code": code, "output": said.read().decode("utf-8", "replace")})
    print(json.dumps(answers))
