"""The app: its commands, the options they share, and errors as one sentence and an exit code.

Command modules import only Typer and the standard library at the top and the core inside their bodies, so that
`--help` needs no torch. A command's docstring is its help; lines after "Examples:" come last. `registry` lists the
commands.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cmpagl_cli.commands.options import Settings
from cmpagl_cli.entry import silence
from cmpagl_cli.registry import COMMANDS, Commands, as_it_is
from cmpagl_cli.views import clean, make_progress
from cmpagl_core import __version__
from cmpagl_core.errors import CmpaglError, ExitCode
from cmpagl_core.interruption import Interruption
from cmpagl_core.workspace import Workspace

_SHARED_WITH_VALUE = ("--workspace", "--device", "--threads")
_SHARED_FLAGS = ("--quiet", "-q", "--debug")
_RENAMED = {"--views": "--tta"}
_INTERRUPTED = (
    "interrupted; finished work is kept and no file is left half written: run the same command again to continue"
)
_NO_MEMORY = (
    "out of memory; reduce the batch size (train.batch_size, evaluate.batch_size) or the size of the model "
    "(image_encoder, text_encoder, losses.embed_dim)"
)

_EXAMPLES = """Examples:
  cmpagl prepare ucm --images UCM/images --annotations dataset_ucm.json
  cmpagl train ucm-cpu
  cmpagl evaluate
  cmpagl retrieve "two baseball fields next to a road" --gallery found.html"""


class CmpaglGroup(TyperGroup):
    """The root group: accepts shared options anywhere, and reports errors as one sentence.

    Translating in `invoke` makes the shell and Typer's CliRunner see the same exit code.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands: Any = Commands(self.commands)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = shared_options_first(args)
        _show_help_early(self, ctx, args)
        return super().parse_args(ctx, args)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except KeyboardInterrupt:
            _fail(_INTERRUPTED, ExitCode.INTERRUPTED, False)

    def invoke(self, ctx: Any) -> Any:
        debug = bool(ctx.params.get("debug"))
        try:
            return super().invoke(ctx)
        except CmpaglError as error:
            _fail(str(error), error.exit_code, debug)
        except KeyboardInterrupt:
            _fail(_INTERRUPTED, ExitCode.INTERRUPTED, debug)
        except BrokenPipeError:
            silence(sys.stdout)  # the reader (`| head`) has closed the pipe
            raise typer.Exit(ExitCode.DONE) from None
        except Exception as error:
            if _is_typers_own(error):
                raise
            if Interruption.current().asked:  # an import may turn Ctrl-C into another exception
                _fail(_INTERRUPTED, ExitCode.INTERRUPTED, debug)
            _fail(_sentence(error), ExitCode.FAILURE, debug)


def shared_options_first(args: Sequence[str]) -> list[str]:
    """The arguments, with the options that every command accepts moved before the command's name."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if (name := word.partition("=")[0]) in _RENAMED:
            raise typer.BadParameter(f"it was renamed, write {_RENAMED[name]}", param_hint=name)
        if word in _SHARED_FLAGS or word.startswith(tuple(f"{name}=" for name in _SHARED_WITH_VALUE)):
            front.append(word)
        elif word in _SHARED_WITH_VALUE:
            if not waiting:
                raise typer.BadParameter("it needs a value", param_hint=word)
            front += [word, waiting.pop(0)]
        else:
            rest.append(word)
    return front + rest


def _show_help_early(group: TyperGroup, ctx: Any, args: Sequence[str]) -> None:
    """Show a command's help before values are parsed: Typer parses them through pydantic, which is slow to import."""
    before = args[: args.index("--")] if "--" in args else args
    if not {"-h", "--help"}.intersection(before):
        return
    command: Any = group
    for word in before:
        child = getattr(command, "commands", {}).get(word)
        if child is not None:
            command = child
            ctx = child.context_class(child, info_name=word, parent=ctx, **child.context_settings)
    typer.echo(command.get_help(ctx))
    raise typer.Exit


def _is_typers_own(error: Exception) -> bool:
    """Usage errors, exits and aborts, which Typer shows itself (recognised without importing click)."""
    return isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "exit_code")


def _is_out_of_memory(error: Exception) -> bool:
    """Python's own error, or torch's on either kind of device, recognised without importing torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in ("can't allocate memory", "std::bad_alloc", "out of memory"))
    )


def _fail(sentence: str, code: ExitCode, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    head = "error: " if os.environ.get("NO_COLOR") else typer.style("error: ", fg="red", bold=True)
    try:
        typer.echo(head + clean(sentence), err=True)
    except OSError:
        silence(sys.stderr)
    raise typer.Exit(int(code)) from None


def _sentence(error: Exception) -> str:
    if _is_out_of_memory(error):
        return _NO_MEMORY
    if isinstance(error, OSError) and error.filename is not None:
        place = error.filename.decode(errors="replace") if isinstance(error.filename, bytes) else error.filename
        return f"{place} cannot be used ({error.strerror}); check that it exists and that you have permission"
    return _unexpected(error)


def _unexpected(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split()) or "no message"
    return f"unexpected {type(error).__name__}{place} ({said}); run again with --debug for the traceback"


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cmpagl {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="cmpagl",
    cls=CmpaglGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing boxes would double the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=as_it_is(_EXAMPLES),
)


@app.callback()
def shared_options(
    ctx: typer.Context,
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with data/, runs/ and indexes/. Default: CMPAGL_WORKSPACE, or the current folder.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads. Default: torch's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages on stderr.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Find remote-sensing images by text and text by image: CMPAGL (TGRS 2024), tested and reproducible."""
    ctx.obj = Settings(Workspace.locate(workspace), device, threads, quiet, debug, make_progress(quiet))
