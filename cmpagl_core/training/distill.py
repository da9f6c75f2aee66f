"""Pretrains Gswin by distillation from frozen extractors, without captions, if no Swin weights exist (ours).

Before CMPAGL's losses, Gswin learns to predict an extractor's last map through a linear head, pooled and position by
position, and to match its similarities between images. It sees train images only: images in a val or test split of any
named data set, or in the selection split, are left out by file hash. The result is cached in the workspace under
everything that affects it, so that trainings of all seeds share it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from cmpagl_core.datasets.augment import VIEWS, d4_transform
from cmpagl_core.datasets.loading import KeptImages
from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.device import autocast, usable_precision
from cmpagl_core.errors import DataError, InterruptedByUserError, MismatchError
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.interruption import Interruption
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.losses import feature_distillation_loss, relation_distillation_loss
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.weights import ImportReport
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import OptimPart, Recipe
from cmpagl_core.recipe_distill import DistillPart
from cmpagl_core.runs import read_tensors, write_tensors
from cmpagl_core.training.optim import make_optimizer, optimizer_tensors, restore_optimizer, schedule, set_rate
from cmpagl_core.training.teachers import teacher_features, teachers_of

DISTILL_VERSION = 2
"""Raised by hand when distilling the same part gives other weights."""

_ORDER_STREAM, _VIEW_STREAM = 11, 12
_STATE_EVERY_S = 30.0
_CLIP_NORM = 1.0
_WARM_UP_STEPS, _RATE_STEPS = 2, 20
_PREFIX = "image_encoder."
_NOT_LEARNT = ("drop_path", "dropout")  # the student has none: it has a teacher

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class DistillJob:
    """What a training's start is distilled from. An image's id is the hash of its file; they are in its order."""

    recipe: Recipe
    images: tuple[ImageRef, ...]
    left_out: int  # train images that are in a val or test split too
    device: torch.device

    @property
    def cfg(self) -> DistillPart:
        return self.recipe.distill

    @property
    def precision(self) -> str:
        return usable_precision(self.device, self.recipe.train.precision)

    @property
    def key(self) -> str:
        """Of all that decides the weights. Raises DataError when a teacher's file cannot be read."""
        image_encoder = self.recipe.image_encoder.model_dump(mode="json", exclude_defaults=True)
        part = self.cfg.model_dump(mode="json", exclude_defaults=True)
        for name in _NOT_LEARNT:
            image_encoder.pop(name, None)
        for name in ("datasets", "teachers", "teacher_weights", "teacher_px", "teacher_head"):
            part.pop(name, None)  # the images and the teachers stand below
        content = [
            DISTILL_VERSION,
            image_encoder,
            self.recipe.data.image_size_px,
            part,
            [teacher.identity for teacher in teachers_of(self.cfg)],
            sha256_text("\n".join(image.image_id for image in self.images)),
            self.device.type,
            self.precision,
        ]
        return sha256_text(canonical_json(content))


@dataclass(frozen=True)
class Start:
    """Distilled weights of Gswin, by its own names, and how well they follow the teachers."""

    key: str
    tensors: Tensors
    about: dict[str, Any]

    def fill(self, encoder: GswinEncoder) -> ImportReport:
        """Give an encoder these weights. Raises MismatchError when it is of another shape."""
        try:
            encoder.load_state_dict(self.tensors)
        except RuntimeError as error:
            wrong = f"the distilled start {self.key[:8]} is of another encoder"
            raise MismatchError(wrong, hint="delete it in the cache") from error
        names = tuple(sorted(_PREFIX + name for name in self.tensors))
        return ImportReport(f"distilled start {self.key[:8]}", imported=names, new=(), left_over=())


def distill_job(
    recipe: Recipe, prepared: PreparedDataset, named: Sequence[PreparedDataset], device: torch.device
) -> DistillJob | None:
    """What a recipe's start comes from, None where it has none. named: the data sets of `distill.datasets`.

    Left out is every image of a val or test split of these data sets or of `prepared`, and of its selection split.
    Raises DataError when no image is left.
    """
    if recipe.distill.epochs == 0:
        return None
    _, selection = selection_splits(prepared, recipe.data.selection)
    held_out = set(selection.image_sha256)
    for dataset in (prepared, *named):
        held_out |= set(dataset.images["sha256"][dataset.images["split"] != "train"])
    found: dict[str, Path] = {}
    for dataset in named:
        split: DataSplit = dataset.split("train")
        found.update(zip(split.image_sha256, split.paths, strict=True))
    kept = {image: path for image, path in found.items() if image not in held_out}
    if len(kept) < 2:
        raise DataError(f"distill.datasets {list(recipe.distill.datasets)} leave {len(kept)} images to learn from")
    images = tuple(ImageRef(image, kept[image]) for image in sorted(kept))
    return DistillJob(recipe, images, len(found) - len(kept), device)


def distilled_start(job: DistillJob, cache_root: Path, progress: Progress) -> Start:
    """The start under its key: distilled now, unless it was before; another process that does it is waited for.

    Raises InterruptedByUserError when stopped; running it again continues from its last state.
    """
    path = cache_root / "starts" / f"{job.key}.safetensors"
    if not path.is_file():
        with hold(path, progress.say):
            if not path.is_file():
                try:
                    _distill(job, path, cache_root, progress)
                except KeyboardInterrupt:
                    raise InterruptedByUserError(
                        "distillation was stopped; its state is saved", hint="run the same command again to continue"
                    ) from None
    else:
        sweep_lock(path)
    about, tensors = _read(path)
    progress.say(
        f"Gswin starts from distilled weights {path.name[:8]}, computed in {about['elapsed_s'] / 60:.0f} min "
        f"on {about['images']:,} "
        f"images (cosine to the teachers {about['cosine']:.3f})"
    )
    return Start(job.key, tensors, about)


@dataclass(frozen=True)
class DistillRate:
    """Measured seconds of distillation for each image: once, when it is decoded, and in every pass."""

    decode_s: float
    pass_s: float
    images: int

    def epochs_within(self, seconds: float) -> int:
        """Passes over all images that fit into so many seconds; at least one."""
        return max(1, int((seconds / self.images - self.decode_s) / self.pass_s))


def measure_distillation(job: DistillJob, cache_root: Path, progress: Progress, seconds: float = 5.0) -> DistillRate:
    """Time a few steps of a student that is thrown away; computes and caches the teachers' features first.

    Raises what distilling raises.
    """
    encoder = _new_encoder(job)
    targets = _targets(job, encoder.last_map_size, cache_root, progress)
    student = _new_student(job, encoder, targets.shape[1])
    rows = next(_batches(job.cfg, len(targets), 0))
    kept = KeptImages([image.path for image in job.images], job.recipe.data.image_size_px)
    started_at = time.monotonic()
    for row in rows.tolist():
        kept.pixel_values(row)
    decode_s = (time.monotonic() - started_at) / len(rows)
    for _ in range(_WARM_UP_STEPS):
        _step(job, student, kept, targets, rows, _RATE_STEPS)
    student.elapsed_s = 0.0
    while student.step < _RATE_STEPS and student.elapsed_s < seconds:
        _step(job, student, kept, targets, rows, _RATE_STEPS)
    steps = student.step - _WARM_UP_STEPS
    return DistillRate(decode_s, student.elapsed_s / steps / len(rows), len(targets))


@dataclass
class _Student:
    """The encoder, its head to the teachers' features, and their optimiser."""

    model: nn.ModuleDict
    optimizer: torch.optim.AdamW
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def encoder(self) -> GswinEncoder:
        encoder = self.model["encoder"]
        assert isinstance(encoder, GswinEncoder)
        return encoder

    def tensors(self) -> Tensors:
        moments = optimizer_tensors(self.model, self.optimizer)
        return {f"model/{name}": value for name, value in self.model.state_dict().items()} | {
            f"optimizer/{name}": value for name, value in moments.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        parts: dict[str, Tensors] = {"model": {}, "optimizer": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.model, self.optimizer, parts["optimizer"])


def _distill(job: DistillJob, path: Path, cache_root: Path, progress: Progress) -> None:
    """Distil and write `path`; a state beside it lets an interrupted one go on to the same weights."""
    size_px = job.recipe.data.image_size_px
    progress.say(
        f"distilling a start from {len(job.images):,} train images ({job.left_out} left out as val or test images)"
    )
    if not KeptImages.fit(len(job.images), size_px):
        raise DataError(
            f"{len(job.images):,} images of {size_px} px take more than 1.5 GiB of memory",
            hint="list fewer data sets in distill.datasets, or lower data.image_size_px",
        )
    encoder = _new_encoder(job)
    targets = _targets(job, encoder.last_map_size, cache_root, progress)
    state_path = path.with_name(f"{path.stem}.state")
    student = _new_student(job, encoder, targets.shape[1])
    if state_path.is_file():
        about, tensors = _read(state_path)
        student.restore(tensors)
        student.step, student.elapsed_s = int(about["step"]), float(about["elapsed_s"])
    cosine = _train(job, student, targets, state_path, progress)
    about = {"images": len(job.images), "steps": student.step, "elapsed_s": student.elapsed_s, "cosine": cosine}
    weights = {name: value.detach().cpu() for name, value in student.encoder.state_dict().items()}
    write_tensors(path, weights, about | {"device": str(job.device), "precision": job.precision})
    state_path.unlink(missing_ok=True)


def _targets(job: DistillJob, grid: int, cache_root: Path, progress: Progress) -> Tensor:
    """The teachers' maps side by side, float16 [N, D, grid, grid]: centred over the images, of one variance each."""
    centred: list[NDArray[np.float16]] = []
    for teacher in teachers_of(job.cfg):
        maps = teacher_features(teacher, job.images, cache_root, progress, job.device, job.precision, grid)
        averaged = maps.mean(axis=(2, 3), dtype=np.float32)  # [N, D]
        mean = averaged.mean(axis=0)
        length = float(np.sqrt(np.square(averaged - mean).sum(axis=1).mean()))
        centred.append(((maps - mean[:, None, None]) / max(length, 1e-6)).astype(np.float16))
    return torch.from_numpy(np.concatenate(centred, axis=1)).to(job.device)


def _new_encoder(job: DistillJob) -> GswinEncoder:
    part = job.recipe.image_encoder.model_copy(update=dict.fromkeys(_NOT_LEARNT, 0.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.cfg.seed)
        return GswinEncoder(part, job.recipe.data.image_size_px)


def _new_student(job: DistillJob, encoder: GswinEncoder, targets: int) -> _Student:
    """targets: the teachers' channels together."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.cfg.seed)
        head = nn.Linear(encoder.width, targets)
    model = nn.ModuleDict({"encoder": use_kernels(encoder, job.device), "head": head.to(job.device)})
    optim = OptimPart(lr=job.cfg.lr, weight_decay=job.cfg.weight_decay)
    origins = {name: "new" for name, _ in model.named_parameters()}
    return _Student(model.train(), make_optimizer(model, origins, optim))


def _train(job: DistillJob, student: _Student, targets: Tensor, state_path: Path, progress: Progress) -> float:
    """All steps that are left. Returns the mean cosine to the teachers over the last epoch's share of them."""
    cfg = job.cfg
    kept = KeptImages([image.path for image in job.images], job.recipe.data.image_size_px)
    total = -(-len(targets) // cfg.batch_size) * cfg.epochs
    cosines: list[float] = []
    state_at = time.monotonic()
    with progress.task("distil", total, "steps") as advance:
        advance(student.step)
        try:
            for rows in _batches(cfg, len(targets), student.step):
                cosines.append(_step(job, student, kept, targets, rows, total))
                advance(1)
                if time.monotonic() - state_at > _STATE_EVERY_S:
                    _keep(student, state_path)
                    state_at = time.monotonic()
        except KeyboardInterrupt:
            _keep(student, state_path)
            raise
    last = cosines[-math.ceil(total / cfg.epochs) :]
    return sum(last) / max(1, len(last))


def _step(
    job: DistillJob, student: _Student, kept: KeptImages, targets: Tensor, rows: NDArray[np.int64], total: int
) -> float:
    """One update by the images of these rows, of `total`. Returns their mean cosine to the teachers."""
    started_at = time.monotonic()
    views = _drawn_views(job.cfg, len(rows), student.step)
    pixel_values = _turned([kept.pixel_values(row) for row in rows.tolist()], views).to(job.device)
    wanted = _turned([targets[row].float() for row in rows.tolist()], views)
    cosine = _gradients(job, student, pixel_values, wanted)
    with Interruption.current().shielded():
        torch.nn.utils.clip_grad_norm_(student.model.parameters(), _CLIP_NORM)
        set_rate(student.optimizer, schedule(student.step, total, job.cfg.warmup_fraction))
        student.optimizer.step()
        student.step += 1
        student.elapsed_s += time.monotonic() - started_at
    return cosine


def _gradients(job: DistillJob, student: _Student, pixel_values: Tensor, targets: Tensor) -> float:
    """Of one batch, pixel_values [B, 3, S, S], targets [B, D, grid, grid]. Returns the mean cosine to the averages."""
    cfg, averaged = job.cfg, targets.mean(dim=(2, 3))  # [B, D]
    student.optimizer.zero_grad(set_to_none=True)
    with autocast(job.device, job.precision):
        tokens = student.encoder(pixel_values)  # [B, 1 + grid * grid, C]
        predicted = student.model["head"](tokens)
    feature = feature_distillation_loss(predicted[:, 0], averaged)
    loss = cfg.feature * feature
    if cfg.local > 0:
        places = targets.flatten(2).transpose(1, 2)  # [B, grid * grid, D]
        loss = loss + cfg.local * feature_distillation_loss(predicted[:, 1:], places)
    if cfg.relation > 0:
        relation = relation_distillation_loss(tokens[:, 0], averaged, cfg.relation_temperature)
        loss = loss + cfg.relation * relation
    torch.autograd.backward(loss)
    return 1.0 - float(feature.detach())


def _batches(cfg: DistillPart, count: int, first: int) -> Iterator[NDArray[np.int64]]:
    """Rows of each step from `first` on: every image once an epoch, in an order that epoch and seed decide."""
    each = -(-count // cfg.batch_size)
    for epoch in range(first // each, cfg.epochs):
        order = np.random.default_rng([cfg.seed, _ORDER_STREAM, epoch]).permutation(count)
        yield from np.array_split(order, each)[max(0, first - epoch * each) :]


def _turned(images: Sequence[Tensor], views: Sequence[int]) -> Tensor:
    """Images or maps [C, H, W], each in its view, stacked: [B, C, H, W]."""
    return torch.stack([d4_transform(image, view) for image, view in zip(images, views, strict=True)])


def _drawn_views(cfg: DistillPart, count: int, step: int) -> list[int]:
    """The view of each image of a step."""
    if cfg.augment == "none":
        return [0] * count
    return [int(view) for view in np.random.default_rng([cfg.seed, _VIEW_STREAM, step]).integers(VIEWS, size=count)]


def _read(path: Path) -> tuple[dict[str, Any], Tensors]:
    tensors = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["cmpagl"])
    return about, tensors


def _keep(student: _Student, path: Path) -> None:
    write_tensors(path, student.tensors(), {"step": student.step, "elapsed_s": student.elapsed_s})
