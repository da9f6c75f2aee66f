"""What commands share: the settings of this call, and options that several of them accept."""

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

    from cmpagl_core.encoders.ray_engine import RayCluster

OutputFormat = Literal["table", "json", "csv", "markdown", "latex", "jsonl"]

FormatOption = Annotated[OutputFormat, typer.Option("--format", help="Format of the result on stdout.")]
RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe file, or name of a shipped recipe.")]
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="NAME|DIR", help="Prepared data set. Default: the newest.")
]
TestedDataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|DIR", help="Prepared data set. Default: the run's, else the newest."),
]
RunOption = Annotated[str | None, typer.Option("--run", metavar="NAME|DIR", help="Run. Default: the newest.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME[:FILE]|open_clip:NAME:CHECKPOINT",
        help="Instead of a run: a published model (`cmpagl models list`) or any open_clip model (extra `clip`).",
    ),
]
ActivationOption = Annotated[
    Literal["quickgelu", "gelu"] | None,
    typer.Option("--activation", help="Activation of a --model file that does not record it."),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Wording with {} for each text; repeat it to average several. own: the published model's.",
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Download the weights of --model if they are missing.")
]
BandsOption = Annotated[
    str | None,
    typer.Option(
        "--bands",
        metavar="R,G,B|N|PRESET",
        help="Bands shown as red, green and blue, one for grey, or a preset: sentinel-2, landsat-8, planetscope, naip. "
        "Default: by the file's color interpretation or band names.",
    ),
]
StretchOption = Annotated[
    str | None,
    typer.Option(
        "--stretch",
        metavar="HOW",
        help="How values become 8 bits: percentile:2,98, range:0,3000, db or db:-25,0 (SAR), none. "
        "Default: none for 8 bits, percentile:2,98 for others.",
    ),
]
TileOption = Annotated[
    int | None,
    typer.Option("--tile", metavar="PX", help="Side of a tile in pixels; 0: none. Default: 512 above 4 megapixels."),
]
TileMetresOption = Annotated[
    float | None, typer.Option("--tile-m", metavar="METRES", help="Side of a tile in metres on the ground.")
]
OverlapOption = Annotated[
    float | None,
    typer.Option("--overlap", metavar="SHARE", help="Overlap of tiles as a share of their side, 0 to 0.9."),
]
IndexOption = Annotated[
    str | None, typer.Option("--index", metavar="NAME|DIR", help="Index to search. Default: the newest.")
]
IndexesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index", metavar="NAME|DIR", help="Index to search; repeat it to search several as one. Default: the newest."
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Name of the result, instead of the default.")
]
OutOption = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Output file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe field, as in optim.lr=1.0e-4; repeatable."),
]
EngineOption = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Who encodes images. local: this process; ray: the workers of Ray (extra `ray`)."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT|auto", help="Ray cluster that runs already. Default: one is started here."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="At most so many Ray workers. Default: as many as the cluster has room for."),
]
WorkerCpusOption = Annotated[
    int | None, typer.Option("--worker-cpus", min=1, help="CPUs of each Ray worker, and its threads. Default: 1.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Overrides the recipe's train.seed.")]


@dataclass(frozen=True)
class Settings:
    """The options that every command accepts, as parsed by the app's callback."""

    workspace: Workspace
    device: str
    threads: int | None
    quiet: bool
    debug: bool
    progress: Progress

    @property
    def session(self) -> Session:
        """The part of them that the core needs."""
        return Session(self.workspace, self.progress, self.compute_device)

    def compute_device(self) -> torch.device:
        """The device to compute on; also sets the number of threads. Raises UsageError for a missing device."""
        from cmpagl_core.device import choose_device, keep_freed_memory, set_threads
        from cmpagl_core.ranks import local_rank, under_torchrun

        set_threads(self.threads)
        device = choose_device(self.device, local_rank() if under_torchrun() else None)
        if device.type == "cpu":
            keep_freed_memory()
        return device


def ray_cluster(engine: str, address: str | None, workers: int | None, worker_cpus: int | None) -> RayCluster | None:
    """Where Ray is to encode; None for this process. Raises UsageError for options of Ray without it."""
    from cmpagl_core.errors import UsageError

    if engine == "ray":
        from cmpagl_core.encoders.ray_engine import RayCluster

        return RayCluster(address, workers, worker_cpus or 1)
    if (address, workers, worker_cpus) != (None, None, None):
        raise UsageError("--address, --workers and --worker-cpus are Ray's", hint="add --engine ray")
    return None


def settings(ctx: typer.Context) -> Settings:
    """The settings of this call, typed."""
    return cast(Settings, ctx.find_root().obj)
