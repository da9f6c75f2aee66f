"""All commands with their line in the root help; a command is imported and built only when it is needed.

Building all of them takes as long as importing Typer, and most calls need one or none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import typer

COMMANDS = {
    "prepare": "Check a data set's images and captions and define its splits.",
    "audit": "Find duplicates, leaks and odd captions in a data set.",
    "train": "Train a recipe on a prepared data set.",
    "evaluate": "Measure a run's recalls, before and after re-ranking.",
    "compare": "Test whether two runs, or two stages of one, differ.",
    "export": "Write a split's features to one safetensors file.",
    "image": "Show how an image or scene is read: bands, stretch, tiles, bounds.",
    "index": "Encode a folder of images for `retrieve` to search.",
    "retrieve": "Find images by text or by example image.",
    "serve": "Search in the browser, and from programs by a JSON API.",
    "localize": "Find where in a scene a text is.",
    "caption": "Find the captions that fit an image.",
    "zeroshot": "Classify images by class names alone.",
    "explain": "Show which image regions the ITM head uses for each word.",
    "ablate": "Train a recipe with and without each claim of the paper.",
    "report": "Write one HTML page about one or more runs.",
    "doctor": "Check versions, device, weights and workspace.",
    "tune": "Choose the parameters of re-rankings, never on test.",
    "recipe": "List, show and validate recipes.",
    "runs": "List finished runs.",
    "indexes": "List, check, prune and merge indexes.",
    "models": "List published models that can be used by name.",
}
"""Each is the function of that name in the module of that name, except for groups."""

GROUPS = {
    "tune": ("smr", "sensitivity"),
    "recipe": ("list", "show", "validate", "schema"),
    "runs": ("list",),
    "models": ("list", "show"),
    "indexes": ("list", "info", "verify", "prune", "merge", "export"),
}
"""Commands with subcommands: `recipe list` is the function `recipe_list`."""

_SHARED_HELP = "Also before or after any command: --workspace, --device, --threads, --quiet, --debug."


class Commands(Mapping[str, Any]):
    """The commands that Typer has built already, then those of `COMMANDS`, each built on first access."""

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
    """Help text that is not rewrapped."""
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
