"""On the plain install, with no extras and no test tools: every module imports, and every `--help` answers."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from typing import Any

import typer
from typer.testing import CliRunner

import cmpagl_cli
import cmpagl_core

OF_EXTRAS = {"cmpagl_core.serve.": ("starlette", "uvicorn", "python_multipart")}
"""Packages that need an extra, and what their import may miss without it."""


OPTIONAL = ("ray", "faiss", "pymilvus", "milvus_lite", "pystac", "pystac_client", "fsspec", "s3fs", "webdataset")
"""Packages of extras that nothing may need or import before a user asks for what they do."""


def modules() -> Iterator[str]:
    for package in (cmpagl_core, cmpagl_cli):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield found.name


def command_lines(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, child in getattr(command, "commands", {}).items():
        yield from command_lines(child, (*words, name))


def main() -> None:
    for folder in (cmpagl_core.__path__[0], cmpagl_cli.__path__[0]):
        if not folder.startswith(sys.prefix):
            sys.exit(f"{folder} is not the installed package")
    names = list(modules())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not any(name.startswith(package) and error.name in missing for package, missing in OF_EXTRAS.items()):
                raise
    plain = {re.split(r"[^A-Za-z0-9_-]", one)[0] for one in requires("cmpagl") or () if "extra ==" not in one}
    if needed := plain & {name.replace("_", "-") for name in OPTIONAL}:
        sys.exit(f"the plain install needs {', '.join(sorted(needed))}")
    if imported := [name for name in OPTIONAL if name in sys.modules]:
        sys.exit(f"the modules of the plain install import {', '.join(imported)}")
    from cmpagl_cli.app import app

    lines = list(command_lines(typer.main.get_command(app)))
    for words in lines:
        result = CliRunner().invoke(app, [*words, "--help"])
        if result.exit_code != 0:
            sys.exit(f"cmpagl {' '.join(words)} --help ended with {result.exit_code}: {result.output}")
    print(f"{len(names)} modules import and {len(lines)} helps answer")  # noqa: T201


if __name__ == "__main__":
    main()
