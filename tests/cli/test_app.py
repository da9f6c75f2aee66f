"""The app: exit codes, sentences, shared options, and a start that loads nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cmpagl_cli.app import CmpaglGroup, app, shared_options_first
from cmpagl_cli.commands.options import settings
from cmpagl_cli.registry import COMMANDS
from cmpagl_core import __version__
from cmpagl_core.errors import (
    CmpaglError,
    DataError,
    GuardError,
    InterruptedByUserError,
    MismatchError,
    RecipeError,
    UsageError,
)
from tests.conftest import Cmpagl

HEAVY = (
    *("torch", "torchvision", "transformers", "timm", "pandas", "pydantic", "numpy"),
    *("PIL", "rasterio", "yaml", "jinja2"),
)


def command_lines() -> Iterator[tuple[str, ...]]:
    """Every command and group of the app, as words."""
    root = typer.main.get_command(app)
    assert isinstance(root, CmpaglGroup)
    for name, command in root.commands.items():
        yield (name,)
        for child in getattr(command, "commands", {}):
            yield (name, child)


def app_that_raises(error: BaseException) -> typer.Typer:
    """The real root group and callback around one command that fails."""
    failing = typer.Typer(cls=CmpaglGroup, rich_markup_mode=None)

    @failing.callback()
    def shared(ctx: typer.Context, debug: bool = False) -> None: ...

    @failing.command()
    def fail() -> None:
        raise error

    return failing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CmpaglError("it broke"), 1),
        (UsageError("it broke"), 2),
        (RecipeError("it broke"), 2),
        (DataError("it broke"), 3),
        (GuardError("it broke"), 4),
        (MismatchError("it broke"), 5),
        (InterruptedByUserError("it broke"), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: CmpaglError, code: int) -> None:
    error.hint = "mend it"
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "error: it broke; mend it\n")


def test_ctrl_c_ends_with_130() -> None:
    assert CliRunner().invoke(app_that_raises(KeyboardInterrupt()), ["fail"]).exit_code == 130


def test_an_unexpected_error_is_one_sentence_that_says_how_to_see_more() -> None:
    result = CliRunner().invoke(app_that_raises(ZeroDivisionError("division\nby zero")), ["fail"])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "unexpected ZeroDivisionError at test_app.py:" in result.stderr
    assert "(division by zero); run again with --debug" in result.stderr


class OutOfMemoryError(RuntimeError):
    """Called like torch's."""


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_full_memory_is_said_in_words(error: Exception) -> None:
    result = CliRunner().invoke(app_that_raises(error), ["fail"])
    assert result.exit_code == 1
    assert "out of memory" in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app_that_raises(DataError("broken row")), ["fail", "--debug"])
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert "Traceback" not in CliRunner().invoke(app_that_raises(DataError("broken row")), ["fail"]).stderr


def test_an_error_cannot_command_the_terminal() -> None:
    result = CliRunner().invoke(app_that_raises(DataError("caption \x1b[2J\x07 is blank")), ["fail"])
    assert "\x1b[2J" not in result.stderr
    assert "\x07" not in result.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "x.yaml", "--device", "cpu"], ["--device", "cpu", "train", "x.yaml"]),
        (["runs", "list", "-q", "--workspace=w"], ["-q", "--workspace=w", "runs", "list"]),
        (["retrieve", "--threads", "2", "--", "--quiet"], ["--threads", "2", "retrieve", "--", "--quiet"]),
        (["retrieve", "a text"], ["retrieve", "a text"]),
    ],
)
def test_shared_options_may_stand_after_the_command(given: list[str], expected: list[str]) -> None:
    assert shared_options_first(given) == expected


def test_a_shared_option_without_its_value_is_a_usage_error() -> None:
    result = CliRunner().invoke(app, ["runs", "list", "--workspace"])
    assert result.exit_code == 2
    assert "--workspace" in result.stderr


def test_settings_reach_a_nested_command(tmp_path: Path) -> None:
    seen = {}
    probing = typer.Typer(cls=CmpaglGroup)
    probing.callback()(app.registered_callback.callback)  # type: ignore[union-attr]
    nested = typer.Typer()

    @nested.command()
    def first(ctx: typer.Context) -> None:
        seen["settings"] = settings(ctx)

    @nested.command()
    def second() -> None: ...

    probing.add_typer(nested, name="nested")
    assert CliRunner().invoke(probing, ["nested", "first", "--workspace", str(tmp_path), "--threads=1"]).exit_code == 0
    assert seen["settings"].workspace.root == tmp_path
    assert seen["settings"].threads == 1


@pytest.mark.parametrize("arguments", [["no-such-command"], ["runs", "list", "--no-such-option"], ["recipe", "show"]])
def test_a_wrong_call_ends_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"cmpagl {__version__}\n"


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_help_of_every_command_ends_with_examples(words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    if "Commands:" not in result.stdout:
        last = result.stdout.rstrip().splitlines()[-1]
        assert "Examples:" in result.stdout
        assert last.strip().startswith(("cmpagl ", "--")), last


def test_no_help_loads_a_heavy_library() -> None:
    calls = json.dumps([["--help"], *([*words, "--help"] for words in command_lines())])
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from cmpagl_cli.app import app\n"
        f"for arguments in json.loads({calls!r}):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0, arguments\n"
        f"    print(arguments, [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert all(line.endswith(" []") for line in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "0"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", None]),
        ({"GOMP_SPINCOUNT": "100"}, [None, "100"]),
    ],
)
def test_waiting_threads_sleep_unless_the_user_decided_otherwise(
    given: dict[str, str], expected: list[str | None]
) -> None:
    code = (
        "import atexit, json, os, sys\n"
        "names = 'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'\n"
        "atexit.register(lambda: print(json.dumps([os.environ.get(name) for name in names]), file=sys.stderr))\n"
        "sys.argv = ['cmpagl', '--version']\n"
        "from cmpagl_cli.entry import main\n"
        "assert 'torch' not in sys.modules\n"
        "main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment | given
    )
    assert json.loads(done.stderr) == expected


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m cmpagl_cli recipe schema; echo code $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == "code 0\n"


def test_the_roots_help_and_a_commands_help_build_no_other_command() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from cmpagl_cli.app import app\n"
        "from cmpagl_cli.registry import COMMANDS\n"
        "for arguments in (['--help'], ['doctor', '--help']):\n"
        "    CliRunner().invoke(app, arguments)\n"
        "    print([name for name in COMMANDS if f'cmpagl_cli.commands.{name}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n['doctor']\n"


def test_every_line_of_the_roots_help_fits_a_terminal() -> None:
    help_text = CliRunner().invoke(app, ["--help"], terminal_width=80).stdout
    assert all(f"\n  {name:8}  {summary}\n" in help_text for name, summary in COMMANDS.items())


def test_a_misspelt_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(app, ["retreive", "sea"])
    assert result.exit_code == 2
    assert "Did you mean 'retrieve'" in result.stderr


@pytest.mark.parametrize("words", [("--views", "one"), ("--views=dihedral",)])
def test_a_renamed_option_is_refused_with_its_new_name(cmpagl: Cmpagl, words: tuple[str, ...]) -> None:
    result = cmpagl("index", "images", *words)
    assert result.exit_code == 2
    assert "it was renamed, write --tta" in " ".join(result.stderr.split())
