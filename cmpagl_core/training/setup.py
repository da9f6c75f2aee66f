"""Prepares a training before its first step: splits, tokenizer, model, cache and loaders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cmpagl_core.datasets.loading import PairLoader, image_source
from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.backbone_cache import backbone_cache, backbone_cache_folder, backbone_settings, views_needed
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import sha256_text, write_text
from cmpagl_core.models.bert import BertShape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import CaptionTokenizer, load_tokenizer
from cmpagl_core.progress import Progress
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import (
    RECIPE_FILE,
    TOKENIZER_FILE,
    BestEpoch,
    RunInfo,
    current_code,
    current_versions,
)
from cmpagl_core.training.distill import Start
from cmpagl_core.training.learner import Learner, caches_until, make_learner
from cmpagl_core.training.resume import Identity, Position, read_state

_MOST_PAIRS = 40_000  # half a minute through three layers of MiniLM on two cores


@dataclass(frozen=True)
class Plan:
    """The data and schedule of a training, fixed before its first step."""

    prepared: PreparedDataset
    train: DataSplit
    selection: DataSplit
    validated: DataSplit  # the part of selection that validation ranks
    files: PairLoader  # decodes images
    views: tuple[int, ...]  # that a cache has to keep
    cached_epochs: int  # before this epoch the backbone is frozen and its maps come from a cache
    total_steps: int  # of the optimiser

    @property
    def pairs(self) -> int:
        return self.files.pairs

    def is_cached(self, epoch: int) -> bool:
        """Whether this epoch reads cached maps instead of images."""
        return epoch < self.cached_epochs

    def check_files(self, epoch: int) -> None:
        """Check that the files read in an epoch are still those that were prepared. Raises as `DataSplit.checked`."""
        if not self.is_cached(epoch):
            self.train.checked()
            self.selection.checked()

    def loader(self, learner: Learner, epoch: int) -> PairLoader:
        """The loader of this epoch's batches."""
        if not self.is_cached(epoch) or learner.cache is None:
            return self.files
        return self.files.reading(learner.cache.source(self.train))


def begin(
    recipe: Recipe,
    recipe_name: str,
    prepared: PreparedDataset,
    root: Path,
    progress: Progress,
    device: torch.device,
    start: Start | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Plan, Learner, Identity]:
    """A new training; where there is a start, Gswin begins with its distilled weights.

    Raises GuardError for selection on test, and the errors of data and weights. Writes the recipe and the tokenizer to
    `root`, where resuming reads them.
    """
    train, selection = selection_splits(prepared, recipe.data.selection)
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, train.captions)
    model = build_model(recipe, tokenizer.vocab_size)
    if start is not None:
        model.import_reports = (start.fill(model.image_encoder), *model.import_reports)
    model = use_kernels(model, device)
    learner = make_learner(recipe, tokenizer, device, model, model.parameter_origins(), ranks)
    for report in learner.model.import_reports:
        progress.say(report.sentence())
    plan = make_plan(learner, prepared, train, selection)
    write_text(root / RECIPE_FILE, recipe.to_yaml())
    write_text(root / TOKENIZER_FILE, tokenizer.to_json())
    identity = Identity(
        recipe_name=recipe_name,
        recipe_sha256=recipe.sha256(),
        manifest_sha256=prepared.manifest.sha256,
        origins=dict(learner.origins),
        text_shape=learner.model.text_encoder.shape.to_dict(),
        tokenizer_sha256=sha256_text(tokenizer.to_json()),
    )
    return plan, learner, identity


def restore_training(
    recipe: Recipe, prepared: PreparedDataset, root: Path, device: torch.device, ranks: Ranks = ALONE
) -> tuple[Plan, Learner, Identity, Position]:
    """A killed training, restored from its last state. Raises DataError or MismatchError."""
    identity, position, tensors = read_state(root, recipe.sha256(), prepared.manifest.sha256)
    train, selection = selection_splits(prepared, recipe.data.selection)
    try:
        text = (root / TOKENIZER_FILE).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{root / TOKENIZER_FILE} cannot be read as UTF-8 text", hint="train again") from error
    if sha256_text(text) != identity.tokenizer_sha256:
        raise MismatchError(
            f"{root / TOKENIZER_FILE} is not the tokenizer with which this training started", hint="train again"
        )
    tokenizer = CaptionTokenizer.from_json(text, recipe.data.max_caption_tokens)
    shape = BertShape.from_dict(identity.text_shape)
    empty = build_model(recipe, tokenizer.vocab_size, pretrained=False, text_shape=shape)
    model = use_kernels(empty, device)
    learner = make_learner(recipe, tokenizer, device, model, identity.origins, ranks)
    learner.restore(tensors)
    if position.scaler:
        learner.scaler.load_state_dict(position.scaler)
    return make_plan(learner, prepared, train, selection), learner, identity, position


def make_plan(learner: Learner, prepared: PreparedDataset, train: DataSplit, selection: DataSplit) -> Plan:
    """Raises DataError if there are too few captioned images to train on, UsageError for too many processes."""
    recipe, views = learner.recipe, views_needed(learner.recipe)
    source = image_source(train, recipe.data)
    files = PairLoader(train, recipe.data, recipe.train.batch_size, learner.tokenizer, source, recipe.train.seed)
    files = files.shared(learner.ranks)
    validated = selection if recipe.losses.pre_alignment else _few_pairs(selection)
    steps = math.ceil(len(files) / recipe.train.accumulate) * recipe.train.epochs
    return Plan(prepared, train, selection, validated, files, views, caches_until(recipe, views), steps)


def _few_pairs(selection: DataSplit) -> DataSplit:
    """Evenly spaced images of a split, few enough for ITM to score all of their image-text pairs."""
    texts_per_image = len(set(selection.captions)) / len(selection)
    count = max(2, min(len(selection), int((_MOST_PAIRS / max(1.0, texts_per_image)) ** 0.5)))
    rows = np.linspace(0, len(selection) - 1, min(count, len(selection))).round().astype(int)
    return selection.subset(np.unique(rows))


def fill_cache(plan: Plan, learner: Learner, cache_root: Path, progress: Progress) -> None:
    """Give the learner the cached maps of all images used for training and validation."""
    if plan.cached_epochs == 0 or learner.backbone is None:
        return
    folder, settings = backbone_cache_folder(cache_root), backbone_settings(learner.recipe, learner.device)
    splits = (plan.train, plan.selection)
    learner.cache = backbone_cache(folder, learner.backbone, settings, splits, progress, learner.device, learner.ranks)


def run_info(
    plan: Plan, learner: Learner, name: str, identity: Identity, position: Position, best: BestEpoch, start_key: str
) -> RunInfo:
    """The contents of run.json for a finished training. start_key: of its distilled start, or empty."""
    return RunInfo(
        name=name,
        dataset=plan.prepared.name,
        dataset_root=str(plan.prepared.root),
        manifest_sha256=identity.manifest_sha256,
        train_sha256=plan.train.sha256,
        selection_sha256=plan.selection.sha256,
        recipe_name=identity.recipe_name,
        recipe_sha256=identity.recipe_sha256,
        code=current_code(),
        versions=current_versions(),
        best=best,
        vocab_size=learner.tokenizer.vocab_size,
        text_shape=identity.text_shape,
        seed=learner.recipe.train.seed,
        epochs=position.epoch,
        parameters=sum(parameter.numel() for parameter in learner.model.parameters()),
        elapsed_s=round(position.elapsed_s, 3),
        seconds_per_epoch=round(position.epochs_s / max(1, position.epoch), 3),
        started_at=position.started_at,
        device=str(learner.device),
        precision=usable_precision(learner.device, learner.recipe.train.precision),
        threads=torch.get_num_threads(),
        start_key=start_key,
    )
