"""A start is distilled from train images alone, once for all seeds, and is known by all that decides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.errors import DataError, InterruptedByUserError, MismatchError
from cmpagl_core.files import FileStamp
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.progress import Advance, Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.run_data import own_data
from cmpagl_core.runs import Run, open_run
from cmpagl_core.training import distill, loop, teachers
from cmpagl_core.training.distill import DistillJob, distill_job, distilled_start
from cmpagl_core.training.journal import read_journal
from cmpagl_core.workspace import Workspace

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")
DISTILL = (
    "distill.epochs=4", "distill.datasets=[squares]", "distill.teachers=[resnet10t]",
    "distill.teacher_weights=[random]", "distill.teacher_px=[32]", "distill.teacher_head=false",
    "distill.batch_size=8", "distill.lr=5.0e-3",
)  # fmt: skip


@pytest.fixture(scope="session")
def distilled(tiny_recipe: MakeRecipe) -> MakeRecipe:
    """The tiny recipe with a start that is distilled from a tiny extractor."""
    recipe = tiny_recipe(*DISTILL, "losses.mlm=0.0", "train.epochs=1")
    return lambda *overrides: override_recipe(recipe, overrides)


def job_of(recipe: Recipe, data: PreparedDataset, *named: PreparedDataset) -> DistillJob:
    job = distill_job(recipe, data, named or (data,), CPU)
    assert job is not None
    return job


def train(recipe: Recipe, data: PreparedDataset, root: Path, cache: Path) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda root, progress: None)
        return loop.fit(recipe, data, root, Silent(), CPU, cache_root=cache, distill_from=(data,))


class Stopping(Silent):
    """Interrupts after so many steps of distillation."""

    def __init__(self, after: int) -> None:
        self.after = after

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        def advance(done: int) -> None:
            self.after -= done if description == "distil" else 0
            if self.after < 0:
                raise KeyboardInterrupt

        yield advance


def test_seeds_share_a_start_that_is_distilled_once(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    fill = distill.Start.fill
    monkeypatch.setattr(
        distill.Start, "fill", lambda start, encoder: (begun.append(start.tensors), fill(start, encoder))[1]
    )
    made: list[str] = []
    really = distill._distill
    monkeypatch.setattr(distill, "_distill", lambda job, *rest: (made.append(job.key), really(job, *rest))[1])
    first, second = (
        train(distilled(f"train.seed={seed}"), squares, tmp_path / str(seed), tmp_path / "cache") for seed in (0, 1)
    )
    assert len(made) == 1
    assert first.info.start_key == second.info.start_key == made[0]
    assert all(torch.equal(value, begun[1][name]) for name, value in begun[0].items())
    assert first.info.weights_sha256 != second.info.weights_sha256
    told = [event for event in read_journal(first.root / "log.jsonl") if event["event"] == "start"]
    assert told[0]["key"] == made[0]
    assert open_run(first.root).info.start_key == made[0]


def test_distilled_weights_learn_at_the_rate_of_imported_ones(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path
) -> None:
    recipe = distilled("optim.image_lr_scale=0.0")
    start = distilled_start(job_of(recipe, squares), tmp_path / "cache", Silent())
    run = train(recipe, squares, tmp_path / "run", tmp_path / "cache")
    encoder = run.load(CPU).model.image_encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in start.tensors.items())


def test_no_val_or_test_image_of_any_set_is_distilled_from(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path
) -> None:
    """Another set holds one of the first's test images and one of its val images as train images."""
    images = squares.images.copy()
    shared = images[images["split"].isin(["test", "val"])].groupby("split").head(1).index
    images = pd.concat([images.loc[shared], images[images["split"] == "train"].head(3)])
    images["split"] = "train"
    images["path"] = [str(squares.root / path) for path in images["path"]]
    captions = squares.captions[squares.captions["image_id"].isin(images["image_id"])]
    other = write_prepared(tmp_path / "other", images.astype("str"), captions, Provenance(name="other"))
    held_out = set(squares.images["sha256"][squares.images["split"] != "train"])
    assert held_out & set(images["sha256"])
    for named in ((squares, other), (other,)):
        job = job_of(distilled(), squares, *named)
        assert job.left_out == 2
        assert not held_out & {image.image_id for image in job.images}
    job = job_of(distilled("data.selection.split=train"), squares)  # a share of train is chosen on
    assert len(job.images) < 16


def test_distilling_nothing_but_test_images_is_refused(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"\['squares'\] leave 0 images"):
        distill_job(distilled(), squares, (), CPU)


def test_a_run_remembers_what_its_start_has_seen(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path
) -> None:
    run = train(distilled(), squares, tmp_path / "run", tmp_path / "cache")
    job = job_of(distilled(), squares)
    assert {image.image_id for image in job.images} <= run.seen.train_images


def test_a_run_whose_start_has_seen_another_set_knows_its_own_data(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda root, progress: None)
    images = squares.images[squares.images["split"] == "train"].head(3).copy()
    for row, name in enumerate(images["image_id"]):
        Image.new("RGB", (32, 32), (50 * row, 0, 0)).save(tmp_path / f"{name}.png")
    images["path"] = [str(tmp_path / f"{name}.png") for name in images["image_id"]]
    stamps = [FileStamp.of(Path(path)) for path in images["path"]]
    images["sha256"] = [stamp.sha256 for stamp in stamps]
    images["bytes"], images["mtime_ns"] = [stamp.size for stamp in stamps], [stamp.mtime_ns for stamp in stamps]
    captions = squares.captions[squares.captions["image_id"].isin(images["image_id"])]
    other = write_prepared(tmp_path / "other", images.astype("str"), captions, Provenance(name="other"))
    from_both = (squares, other)
    run = loop.fit(distilled(), squares, tmp_path / "run", Silent(), CPU, distill_from=from_both)
    assert set(images["sha256"]) <= run.seen.train_images
    assert own_data(Workspace(tmp_path), run).root == squares.root


def test_all_that_decides_a_start_is_in_its_key(distilled: MakeRecipe, squares: PreparedDataset) -> None:
    job = job_of(distilled(), squares)
    for override in (
        "distill.epochs=5", "distill.lr=1.0e-3", "distill.relation=0.5", "distill.seed=1",
        "distill.teachers=[resnet14t]", "distill.teacher_px=[64]", "distill.augment=none",
        "image_encoder.global_window=false", "image_encoder.window_size=4", "data.image_size_px=64",
    ):  # fmt: skip
        assert job_of(distilled(override), squares).key != job.key, override
    for override in ("train.seed=1", "image_encoder.drop_path=0.2", "losses.itc=0.5", "optim.clip_norm=0.5"):
        assert job_of(distilled(override), squares).key == job.key, override
    assert replace(job, images=job.images[1:]).key != job.key
    assert job_of(distilled("distill.datasets=[another_name]"), squares).key == job.key


def test_an_interrupted_distillation_goes_on_to_the_same_weights(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path
) -> None:
    job = job_of(distilled(), squares)
    whole = distilled_start(job, tmp_path / "whole", Silent())
    with pytest.raises(InterruptedByUserError, match="distillation was stopped"):
        distilled_start(job, tmp_path / "stopped", Stopping(after=3))
    assert not list((tmp_path / "stopped" / "starts").glob("*.safetensors"))
    goes_on = distilled_start(job, tmp_path / "stopped", Silent())
    assert all(torch.equal(value, goes_on.tensors[name]) for name, value in whole.tensors.items())
    assert not list((tmp_path / "stopped" / "starts").glob("*.state"))


def test_teachers_see_each_image_once(
    distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    really = teachers._compute
    monkeypatch.setattr(
        teachers, "_compute", lambda one, images, *rest: (computed.append(len(images)), really(one, images, *rest))[1]
    )
    job = job_of(distilled(), squares)
    distilled_start(replace(job, images=job.images[:10]), tmp_path, Silent())
    distilled_start(job, tmp_path, Silent())
    distilled_start(job_of(distilled("distill.seed=1"), squares), tmp_path, Silent())
    assert computed == [10, 6]


def test_a_student_comes_to_follow_its_teacher(distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path) -> None:
    few = distilled_start(job_of(distilled("distill.epochs=1"), squares), tmp_path, Silent())
    many = distilled_start(job_of(distilled("distill.epochs=40"), squares), tmp_path, Silent())
    assert many.about["cosine"] > few.about["cosine"] + 0.3


def test_a_start_of_another_encoder_is_refused(distilled: MakeRecipe, squares: PreparedDataset, tmp_path: Path) -> None:
    start = distilled_start(job_of(distilled(), squares), tmp_path, Silent())
    plain = distilled("image_encoder.global_window=false")
    with pytest.raises(MismatchError, match="is of another encoder"):
        start.fill(GswinEncoder(plain.image_encoder, 32))
