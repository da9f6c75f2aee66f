"""Judge a recipe's probes and losses on nine parts of UCM-Captions that no training of theirs has seen.

    python docs/results/blocks.py --workspace W --data ucm ucm-cpu --set losses.hubness=0

The val and test splits are the last twenty images of each class, and neighbours in the numbering are often cut from
one scene: a random share of the train split is a far easier task (mR 60 to 64) than they are. So the parts are the val
split, after training on the train split, and the eighths of each class in the order of the numbering, each after
training on the rest of the train split. Trained are the linear probes of the frozen backbones and the text projection
by the recipe's losses, with its optimiser, schedule and average, but neither Gswin's block nor the fusion encoder,
which makes a training take seconds. Prints one JSON line: mR by cosine of every part, averaged over the seeds. Never
reads the test split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import WHOLE, Draw, PairBatch, PairLoader
from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders.backbone_cache import backbone_cache, backbone_cache_folder, backbone_settings
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.models.cmpagl import CmpaglModel, ImageEncoding, TextEncoding, build_model, unit_groups
from cmpagl_core.models.tokenizer import CaptionTokenizer, load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training.objective import Encoded, compute_losses
from cmpagl_core.training.optim import RunningAverage, make_optimizer, schedule, set_rate
from cmpagl_core.workspace import Workspace

PROBES_ALONE = ("losses.itm=0", "losses.mlm=0", "fusion_encoder.enabled=false", "train.balance_images=0")
IMAGES_AT_ONCE = 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pooled:
    """Images as the pooled channels of their backbones [N, views, C]; a source for `PairLoader`."""

    channels: Tensor
    rows: dict[str, int]  # by the SHA-256 of an image's file
    split: DataSplit

    def gather(self, draws: Sequence[Draw]) -> Tensor:
        rows = [self.rows[self.split.image_sha256[draw.row]] for draw in draws]
        return self.channels[rows, [draw.view for draw in draws]]

    def of(self, split: DataSplit) -> Pooled:
        return Pooled(self.channels, self.rows, split)


@torch.no_grad()
def pooled_channels(workspace: Workspace, recipe: Recipe, model: CmpaglModel, splits: Sequence[DataSplit]) -> Pooled:
    """Every image's channels, from the cached maps that a training of the recipe would use."""
    backbone = model.image_encoder.patch_embed
    folder = backbone_cache_folder(workspace.cache)
    cache = backbone_cache(folder, backbone, backbone_settings(recipe, CPU), splits, Silent(), CPU)  # type: ignore[arg-type]
    found: list[Tensor] = []
    rows: dict[str, int] = {}
    for split in splits:
        source = cache.source(split)
        for start in range(0, len(split), IMAGES_AT_ONCE):
            these = range(start, min(start + IMAGES_AT_ONCE, len(split)))
            done = sum(map(len, found))
            rows.update((split.image_sha256[row], done + place) for place, row in enumerate(these))
            draws = [Draw(row, 0, view, WHOLE) for row in these for view in cache.views]
            maps = backbone.join(cache.unflatten(source.gather(draws)))  # type: ignore[union-attr, operator]
            found.append(maps.mean(dim=(2, 3)).reshape(len(these), len(cache.views), -1))
    return Pooled(torch.cat(found), rows, splits[0])


class Captions:
    """The frozen text encoder's vectors, each caption encoded once."""

    def __init__(self, model: CmpaglModel, tokenizer: CaptionTokenizer) -> None:
        self._encoder, self._tokenizer, self._known = model.text_encoder, tokenizer, dict[str, Tensor]()

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        for caption in captions:
            if caption not in self._known:
                tokens = self._tokenizer([caption])
                self._known[caption] = self._encoder.pooled(tokens.input_ids, tokens.attention_mask)[1][0]
        return torch.stack([self._known[caption] for caption in captions])  # [B, P]


def parts(train: DataSplit, val: DataSplit) -> Iterator[tuple[str, DataSplit, DataSplit]]:
    """Name, images to train on, images to judge by."""
    yield "val", train, val
    scenes = np.array(train.scenes)
    for eighth in range(8):
        of_each = [np.array_split(np.flatnonzero(scenes == scene), 8)[eighth] for scene in sorted({*scenes})]
        held = np.sort(np.concatenate(of_each))
        yield f"eighth {eighth + 1}", train.subset(np.setdiff1d(np.arange(len(train)), held)), train.subset(held)


def image_features(model: CmpaglModel, channels: Tensor) -> Tensor:
    """channels: [B, C]. Returns [B, D], of the probes alone."""
    skip = model.backbone_skip
    if skip is None:
        raise SystemExit("this recipe has no linear probe: set image_encoder.backbone_skip")
    probed = skip(torch.zeros(len(channels), len(skip.gate)), channels[:, :, None, None])
    return unit_groups(probed, model.probes)


def text_features(model: CmpaglModel, vectors: Tensor) -> Tensor:
    """vectors: [B, P], of the text encoder. Returns [B, D]."""
    return unit_groups(model.text_projection(vectors), model.probes)


def loss_of(model: CmpaglModel, recipe: Recipe, batch: PairBatch, texts: Captions) -> Tensor:
    """The recipe's losses before fusion, which read no tokens."""
    images = image_features(model, batch.images)
    captions = text_features(model, texts(batch.captions))
    no_tokens = images.new_zeros(len(images), 0, 0)
    encoded = Encoded(ImageEncoding(no_tokens, images), TextEncoding(no_tokens, captions, batch.attention_mask))
    return compute_losses(model, recipe.losses, encoded, batch, None, torch.Generator()).total


def trained(recipe: Recipe, model: CmpaglModel, loader: PairLoader, texts: Captions) -> RunningAverage:
    torch.manual_seed(recipe.train.seed)
    origins = model.parameter_origins()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("backbone_skip.projections", "text_projection", "logit_scale")))
    optimizer = make_optimizer(model, origins, recipe.optim)
    average = RunningAverage(model, recipe.train.ema_decay)
    total, step = recipe.train.epochs * len(loader), 0
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    model.train()
    for epoch in range(recipe.train.epochs):
        for batch in loader.epoch(epoch):
            set_rate(optimizer, schedule(step, total, recipe.optim.warmup_fraction))
            optimizer.zero_grad()
            loss_of(model, recipe, batch, texts).backward()
            torch.nn.utils.clip_grad_norm_(learning, recipe.optim.clip_norm)
            optimizer.step()
            model.clamp_logit_scale()
            average.update(model, step)
            step += 1
    return average


@torch.no_grad()
def mean_recall(model: CmpaglModel, split: DataSplit, pooled: Pooled, texts: Captions) -> float:
    """mR by cosine with features averaged over all views, as `tta: d4` does."""
    model.eval()
    rows = [pooled.rows[sha256] for sha256 in split.image_sha256]
    views = [image_features(model, pooled.channels[rows, view]) for view in range(pooled.channels.shape[1])]
    images = torch.stack(views).mean(dim=0).numpy()
    captions = text_features(model, texts(split.captions)).numpy()
    scores = ScoreMatrix.from_features(images, captions)
    return recall(scores, Matches.own(split.caption_image, len(split))).mr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--data", default="ucm")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    workspace = Workspace(given.workspace)
    recipe = load_recipe(given.recipe, (*PROBES_ALONE, *given.set))
    prepared = open_prepared(workspace.find("data", given.data))
    train, val = prepared.split("train"), prepared.split("val")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, train.captions)
    model = build_model(recipe, tokenizer.vocab_size).eval()
    pooled, texts = pooled_channels(workspace, recipe, model, (train, val)), Captions(model, tokenizer)
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        seeded = load_recipe(given.recipe, (*PROBES_ALONE, *given.set, f"train.seed={seed}"))
        for name, learnt, judged in parts(train, val):
            model = build_model(seeded, tokenizer.vocab_size)
            loader = PairLoader(learnt, recipe.data, recipe.train.batch_size, tokenizer, pooled.of(learnt), seed)
            average = trained(seeded, model, loader, texts)
            with average.applied(model):
                found.setdefault(name, []).append(mean_recall(model, judged, pooled, texts))
    by_part = {name: round(float(np.mean(values)), 2) for name, values in found.items()}
    mean = round(float(np.mean(list(by_part.values()))), 2)
    print(json.dumps({"recipe": given.recipe, "set": given.set, "seeds": given.seeds, "mean": mean, "parts": by_part}))


if __name__ == "__main__":
    main()
