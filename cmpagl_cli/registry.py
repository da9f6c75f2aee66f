"""Every command by its name, with its line in the root's help; a command is imported and built when it is asked for.

Building all of them takes Typer as long as importing Typer does, and most calls need one or none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import typer

COMMANDS = {
    "prepare": "Check a data set's images and captions, and fix its splits.",
    "train": "Train a recipe on a prepared data set.",
    "evaluate": "Recalls of a run on a split, before and after re-ranking.",
    "compare": "Test whether two evaluated runs, or one at two stages, differ.",
    "export": "Write a split's features to one safetensors file.",
    "index": "Encode a folder of images, so that `retrieve` finds them.",
    "retrieve": "Find images by text, or by another image.",
    "explain": "Show where a run's fusion half looks for each word.",
    "ablate": "Train a recipe with and without each claim of the paper.",
    "report": "Write one HTML page about a run, or about several.",
    "doctor": "Check versions, device, weights and workspace.",
    "tune": "Choose what re-rankings need, never on the test split.",
    "recipe": "List, show and validate recipes.",
    "runs": "See what has been trained.",
    "models": "See which models of others can be used by name.",
}
"""Each is the function of that name in the module of that name, but for groups."""

GROUPS = {
    "tune": ("smr", "sensitivity"),
    "recipe": ("list", "show", "validate", "schema"),
    "runs": ("list",),
    "models": ("list", "show"),
}
"""Commands with commands of their own: `recipe list` is the function `recipe_list`."""

_SHARED_HELP = "Also before or after any command: --workspace, --device, --threads, --quiet, --debug."


class Commands(Mapping[str, Any]):
    """Those of `COMMANDS`, each built when it is first asked for, behind those that Typer has built already."""

    def __init__(self, built: Mapping[str, Any]) -> None:
        self._built = dict(built)
        self._names = list(dict.fromkeys([*built, *COMMANDS]))

    def __getitem__(self, name: str) -> Any:
        if name not in self._built and name in self._names:
            self._built[name] = _build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def as_it_is(text: str) -> str:
    """Help text whose lines are not to be wrapped."""
    return "\b\n" + text


def _build(name: str) -> Any:
    module = import_module(f"cmpagl_cli.commands.{name}")
    if name not in GROUPS:
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        _add(alone, name, getattr(module, name))
        return typer.main.get_command(alone)
    group = typer.Typer(name=name, help=COMMANDS[name], no_args_is_help=True, rich_markup_mode=None)
    for child in GROUPS[name]:
        _add(group, child, getattr(module, f"{name}_{child}"))
    return typer.main.get_group(group)


def _add(parent: typer.Typer, name: str, function: Callable[..., None]) -> None:
    text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
    epilog = _SHARED_HELP + ("\n\n" + as_it_is(f"Examples:\n{examples}") if examples else "")
    parent.command(name, help=text, epilog=epilog)(function)
