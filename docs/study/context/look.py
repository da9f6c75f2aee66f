"""Look inside trained encoders with and without the global window: receptive fields, its attention, its gates.

    python docs/study/context/look.py WORKSPACE docs/study/context --data ucm

Reads the runs of seed 0 that `cmpagl ablate gswin-small --study global-window` left in WORKSPACE. Writes
receptive-field.png, attention.png, gates.png and look.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from cmpagl_core.ablation.trials import VARIANT_RUNS
from cmpagl_core.datasets.loading import KeptImages
from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.imagery.images import IMAGE_MEAN, IMAGE_STD
from cmpagl_core.models.attention import split_heads
from cmpagl_core.models.global_window import LocalQueryAttention
from cmpagl_core.models.gswin import GlobalBranch, GswinEncoder
from cmpagl_core.progress import Silent
from cmpagl_core.runs import Run, list_runs
from cmpagl_core.training.journal import read_journal
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
SCENES = 10
IMAGES = 64  # that receptive fields are averaged over


def plain_encoder(run: Run) -> GswinEncoder:
    """The run's encoder of plain layers, as the method is written."""
    loaded = run.load(CPU)
    encoder = GswinEncoder(loaded.recipe.image_encoder, loaded.recipe.data.image_size_px)
    encoder.load_state_dict(loaded.model.image_encoder.state_dict())
    return encoder.eval().requires_grad_(False)


def receptive_fields(encoder: GswinEncoder, pixel_values: Tensor) -> list[np.ndarray]:
    """For each stage, how much each pixel moves the token in the middle of its map: [S, S], summing to 1."""
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda _, __, out: maps.append(out)) for stage in encoder.layers.values()]
    fields = [np.zeros(pixel_values.shape[-2:]) for _ in encoder.layers]
    for image in pixel_values:
        maps.clear()
        pixels = image[None].clone().requires_grad_(True)
        encoder(pixels)
        for stage, x in enumerate(maps):
            middle = x[0, x.shape[1] // 2, x.shape[2] // 2]
            (gradient,) = torch.autograd.grad(middle.sum(), pixels, retain_graph=True)
            share = gradient[0].abs().sum(dim=0)
            fields[stage] += (share / share.sum()).numpy() / len(pixel_values)
    for hook in hooks:
        hook.remove()
    return fields


def reach(field: np.ndarray, map_size: int) -> dict[str, float]:
    """Mean distance in pixels of a field from its token's middle, and the share that lies further than a quarter."""
    size = field.shape[0]
    middle = (map_size // 2 + 0.5) * size / map_size
    y, x = np.mgrid[:size, :size] + 0.5
    distance = np.maximum(abs(y - middle), abs(x - middle))
    return {
        "mean_distance_px": round(float((field * distance).sum()), 2),
        "share_beyond_a_quarter": round(float(field[distance > size / 4].sum()), 4),
    }


@torch.inference_mode()
def global_attention(encoder: GswinEncoder, pixel_values: Tensor) -> list[np.ndarray]:
    """For each stage, how much of the local tokens' attention each place of the global window gets: [B, w, w]."""
    found: dict[int, list[Tensor]] = {}

    def watch(stage: int) -> Any:
        def hook(branch: GlobalBranch, inputs: tuple[Tensor, Tensor]) -> None:
            x, window = inputs
            attn = branch.attn
            assert isinstance(attn, LocalQueryAttention)
            query = split_heads(attn.query(branch.norm(x).flatten(1, 2)), attn.num_heads)
            key = split_heads(attn.key_value(window).chunk(2, dim=-1)[0], attn.num_heads)
            weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)  # [B, heads, N, w w]
            found.setdefault(stage, []).append(weights.mean(dim=(1, 2)))

        return hook

    for name, module in encoder.named_modules():
        if isinstance(module, GlobalBranch):
            module.register_forward_pre_hook(watch(int(name.split(".")[1])))
    encoder(pixel_values)
    averaged = [torch.stack(one).mean(dim=0) for _, one in sorted(found.items())]
    return [one.unflatten(1, (int(one.shape[1] ** 0.5),) * 2).numpy() for one in averaged]


def draw_fields(fields: dict[str, list[np.ndarray]], path: Path) -> None:
    figure, axes = plt.subplots(len(fields), 4, figsize=(10, 2.6 * len(fields)), squeeze=False)
    for row, (name, found) in enumerate(fields.items()):
        for stage, field in enumerate(found):
            axes[row][stage].imshow(np.log10(field + 1e-7), cmap="magma", vmin=-6, vmax=-2)
            axes[row][stage].set_title(f"{name}, stage {stage + 1}", fontsize=8)
            axes[row][stage].axis("off")
    _save(figure, path)


def draw_attention(pixel_values: Tensor, attention: list[np.ndarray], path: Path) -> None:
    figure, axes = plt.subplots(1 + len(attention), SCENES, figsize=(1.3 * SCENES, 1.4 * (1 + len(attention))))
    for column in range(SCENES):
        image = pixel_values[column].permute(1, 2, 0).numpy() * IMAGE_STD + IMAGE_MEAN
        axes[0][column].imshow(image.clip(0, 1))
        for stage, weights in enumerate(attention):
            even = 1 / weights[column].size
            axes[1 + stage][column].imshow(weights[column] / even, cmap="viridis", vmin=0, vmax=3)
            if column == 0:
                axes[1 + stage][0].set_ylabel(f"stage {stage + 1}", fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    _save(figure, path)


def draw_gates(runs: dict[int, Run], path: Path) -> dict[str, list[float]]:
    """Mean size of each stage's gates after each epoch, one line a seed. Returns them at the end of training."""
    figure, axis = plt.subplots(figsize=(6, 3.2))
    last: dict[str, list[float]] = {}
    for run in runs.values():
        epochs = [event for event in read_journal(run.root / "log.jsonl") if event["event"] == "epoch"]
        for place, stage in enumerate(epochs[0]["gates"]):
            values = [event["gates"][stage] for event in epochs]
            label = stage if stage not in last else None
            axis.plot(range(1, len(values) + 1), values, color=f"C{place}", label=label, alpha=0.8)
            last.setdefault(stage, []).append(round(values[-1], 4))
    axis.set_xlabel("epoch")
    axis.set_ylabel("mean size of the gates")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    _save(figure, path)
    return last


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def spread_images(split: DataSplit, count: int, size_px: int) -> Tensor:
    """Evenly spaced images of a split: [count, 3, S, S]."""
    rows = np.linspace(0, len(split) - 1, count).round().astype(int)
    images = KeptImages(split.paths, size_px)
    return torch.stack([images.pixel_values(int(row)) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", default="ucm")
    given = parser.parse_args()
    workspace = Workspace(given.workspace)
    split = open_prepared(workspace.find("data", given.data)).split("test")
    runs: dict[str, dict[int, Run]] = {}
    for run in list_runs(workspace, Silent(), VARIANT_RUNS):
        runs.setdefault(run.info.recipe_name, {})[run.info.seed] = run
    encoders = {name: plain_encoder(runs[name][0]) for name in ("baseline", "no-global-window") if 0 in runs[name]}
    size_px = encoders["baseline"].image_size_px
    pixel_values = spread_images(split, IMAGES, size_px)
    fields = {name: receptive_fields(encoder, pixel_values) for name, encoder in encoders.items()}
    sizes = [stage.map_size for stage in encoders["baseline"].layers.values()]
    draw_fields(fields, given.folder / "receptive-field.png")
    scenes = pixel_values[:: IMAGES // SCENES][:SCENES]
    attention = global_attention(encoders["baseline"], scenes)
    draw_attention(scenes, attention, given.folder / "attention.png")
    document = {
        "receptive_field": {
            name: [reach(field, size) for field, size in zip(found, sizes, strict=True)]
            for name, found in fields.items()
        },
        "attention_entropy_of_even": [
            round(float(-(one * np.log(one)).sum(axis=(1, 2)).mean() / np.log(one[0].size)), 4) for one in attention
        ],
        "gates_at_the_end": draw_gates(runs["baseline"], given.folder / "gates.png"),
    }
    (given.folder / "look.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
