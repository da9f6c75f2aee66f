"""What commands share: the settings of this call, and options that several of them take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cmpagl_core.progress import Progress
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace

if TYPE_CHECKING:
    import torch

OutputFormat = Literal["table", "json", "csv", "markdown", "latex", "jsonl"]

FormatOption = Annotated[OutputFormat, typer.Option("--format", help="How to write the result on stdout.")]
RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that comes with cmpagl.")
]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="NAME|DIR", help="Prepared data set; the newest if left out.")
]
TestedDataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|DIR", help="Prepared data set; the run's own, or the newest, if left out."),
]
RunOption = Annotated[str | None, typer.Option("--run", metavar="NAME|DIR", help="Run; the newest if left out.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[:FILE]|open_clip:NAME:CHECKPOINT",
        help="In place of a run: a published model (`cmpagl models list`) or any of open_clip (extra clip).",
    ),
]
ActivationOption = Annotated[
    Literal["quickgelu", "gelu"] | None,
    typer.Option("--activation", help="Of a --model file that does not say what it was trained with."),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch the weights of --model if they are not on this machine.")
]
IndexOption = Annotated[
    str | None, typer.Option("--index", metavar="NAME|DIR", help="Gallery index; the newest if left out.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of what is made, in place of the usual one.")
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field, as in optim.lr=1.0e-4; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="In place of the recipe's train.seed.")]


@dataclass(frozen=True)
class Settings:
    """The options that every command understands, as the app's callback read them."""

    workspace: Workspace
    device: str
    threads: int | None
    quiet: bool
    debug: bool
    progress: Progress

    @property
    def session(self) -> Session:
        """What the core needs of them."""
        return Session(self.workspace, self.progress, self.compute_device)

    def compute_device(self) -> torch.device:
        """The device to compute on, the number of threads set. Raises UsageError if it is not there."""
        from cmpagl_core.device import choose_device, keep_freed_memory, set_threads

        set_threads(self.threads)
        device = choose_device(self.device)
        if device.type == "cpu":
            keep_freed_memory()
        return device


def settings(ctx: typer.Context) -> Settings:
    """The settings of this call, typed."""
    return cast(Settings, ctx.find_root().obj)
