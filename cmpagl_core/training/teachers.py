"""Features of frozen extractors as distillation targets, computed once and cached by image hash (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cmpagl_core.device import autocast
from cmpagl_core.encoders.decode import decoded_batches, image_decoder
from cmpagl_core.encoders.tensor_file import TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import canonical_json, sha256_file, sha256_text
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import IMAGE_MEAN, IMAGE_STD, decoded_px, to_pixel_values
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.weights import parse_source
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import ImageEncoderPart
from cmpagl_core.recipe_distill import DistillPart

TEACHER_FORMAT = 1

_AT_ONCE = 32
_LARGEST_HALF = 65504.0
_IN_A_FILE = 1024  # images between two writes, which a kill may lose


@dataclass(frozen=True)
class Teacher:
    """One frozen extractor of a recipe's `distill` part. head: with its last 1x1 convolution."""

    name: str
    weights: str
    side_px: int
    head: bool

    @property
    def identity(self) -> list[str | int | bool]:
        """All that decides its features but the device: a file's weights by its content, a package's by its name.

        Raises DataError when the file cannot be read.
        """
        source = parse_source(self.weights)
        weights = self.weights
        if source.kind == "file":
            try:
                weights = sha256_file(Path(source.name))
            except OSError as error:
                raise DataError(f"{source.name} cannot be read ({error.strerror})") from error
        return [self.name, weights, self.side_px, self.head]

    def build(self) -> Backbone:
        """The extractor with its weights; random ones are always the same. Raises what their import raises."""
        from cmpagl_core.models.imports import import_backbone  # builds timm's registry

        part = ImageEncoderPart(
            size="custom",
            depths=(0, 0, 0, 1),  # of a Gswin that is not built
            backbone=self.name,
            backbone_strides=(32,),
            backbone_head=self.head,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = Backbone(part)
        if self.weights != "random":
            import_backbone(backbone, self.name, self.weights)
        backbone.fold_norms()
        return backbone


def teachers_of(cfg: DistillPart) -> tuple[Teacher, ...]:
    """The teachers that a recipe names."""
    named = zip(cfg.teachers, cfg.teacher_weights, cfg.teacher_px, strict=True)
    return tuple(Teacher(name, weights, side_px, cfg.teacher_head) for name, weights, side_px in named)


def teacher_features(
    teacher: Teacher,
    images: Sequence[ImageRef],
    cache_root: Path,
    progress: Progress,
    device: torch.device,
    precision: str,
    grid: int,
) -> NDArray[np.float16]:
    """The last map of each image, averaged down to a grid, [N, D, grid, grid].

    An image's id is the hash of its file, under which it is kept.

    Raises DataError for an image that cannot be read, MismatchError for one that was changed.
    """
    about = {"mean": IMAGE_MEAN, "std": IMAGE_STD, "decoded_px": decoded_px(teacher.side_px), "precision": precision}
    key = sha256_text(canonical_json([TEACHER_FORMAT, teacher.identity, about, device.type, grid]))[:24]
    home = cache_root / "teachers" / key
    known = _read(home)
    if any(image.image_id not in known for image in images):
        with hold(home, progress.say):
            known = _read(home)
            missing = [image for image in images if image.image_id not in known]
            _compute(teacher, missing, home, progress, device, precision, grid)
        known = _read(home)
    else:
        sweep_lock(home)
    return np.stack([known[image.image_id] for image in images])


def _compute(
    teacher: Teacher,
    images: Sequence[ImageRef],
    home: Path,
    progress: Progress,
    device: torch.device,
    precision: str,
    grid: int,
) -> None:
    if not images:
        return
    backbone = teacher.build().to(device)
    side = teacher.side_px
    decode = image_decoder(lambda image: to_pixel_values(image, side), decoded_px(side))
    with progress.task(f"features of {teacher.name}", len(images), "img") as advance:
        for start in range(0, len(images), _IN_A_FILE):
            part = images[start : start + _IN_A_FILE]
            found: list[Tensor] = []
            for batch in decoded_batches(part, decode, _AT_ONCE):
                if batch.broken:
                    raise DataError(batch.broken[0].why, hint=f"repair or remove {batch.broken[0].image.path.name}")
                for row, stamp in zip(batch.rows, batch.stamps, strict=True):
                    if stamp.sha256 != part[row].image_id:
                        raise MismatchError(f"{part[row].path} was changed after the data set was prepared")
                with torch.inference_mode(), autocast(device, precision):
                    maps = backbone(batch.pixel_values.to(device)).float()
                found.append(F.adaptive_avg_pool2d(maps, grid).clamp(-_LARGEST_HALF, _LARGEST_HALF).half().cpu())
                advance(len(batch.rows))
            _write(home, [image.image_id for image in part], torch.cat(found).numpy())


def _write(home: Path, images: Sequence[str], features: NDArray[np.float16]) -> None:
    name = sha256_text("\n".join(images))[:24]
    arrays = {"features": features, **TextTable.of(images).arrays("images")}
    write_tensor_file(home / f"{name}.safetensors", arrays, {"format": TEACHER_FORMAT})


def _read(home: Path) -> dict[str, NDArray[np.float16]]:
    """Every cached image's features by the hash of its file."""
    known: dict[str, NDArray[np.float16]] = {}
    for path in sorted(home.glob("*.safetensors")):
        file = open_tensor_file(path)
        names = file.texts("images")
        known.update(zip(names, file.array("features", "<f2", (len(names), None, None, None)), strict=True))
    return known
