"""A training leaves a run that is whole, the same each time, and says what it did."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmpagl_core import device
from cmpagl_core.datasets.loading import Draw, KeptImages, PairBatch
from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import CmpaglError, DataError, GuardError, InterruptedByUserError, MismatchError
from cmpagl_core.evaluation.choosing import RunScorer
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.ranking.rerank import ChosenParams
from cmpagl_core.recipe import Recipe
from cmpagl_core.run_data import is_own
from cmpagl_core.runs import Run, open_run, read_tensors
from cmpagl_core.training import loop
from cmpagl_core.training.journal import read_journal
from tests.conftest import Told

MakeRecipe = Callable[..., Recipe]
CPU = torch.device("cpu")


def train(recipe: Recipe, data: PreparedDataset, root: Path, curves: bool = False, **options: Any) -> Run:
    """Train without drawing curves, since importing matplotlib takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(loop, "draw_curves", lambda root, progress: None)
        progress = options.pop("progress", Silent())
        return loop.fit(recipe, data, root, progress, CPU, cache_root=data.root / "cache", **options)


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_journal(root / "log.jsonl") if event["event"] == kind]


@contextmanager
def disk_of(free_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `free_bytes`: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def tiny_run(squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    return train(tiny_recipe(), squares, tmp_path_factory.mktemp("runs") / "tiny", curves=True, recipe_name="tiny")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tiny_run: Run, squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    again = train(tiny_recipe(), squares, tmp_path / "again")
    other = train(tiny_recipe("train.seed=1"), squares, tmp_path / "other")
    assert again.weights_path.read_bytes() == tiny_run.weights_path.read_bytes()
    assert other.info.weights_sha256 != tiny_run.info.weights_sha256


def test_loader_threads_change_no_byte(
    tiny_run: Run, squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    threaded = train(tiny_recipe("data.workers=2"), squares, tmp_path / "threaded")
    weights = [read_tensors(run.weights_path) for run in (tiny_run, threaded)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_is_whole_and_its_state_is_gone(tiny_run: Run, squares: PreparedDataset) -> None:
    files = {path.name for path in tiny_run.root.iterdir()}
    assert files == {
        "recipe.yaml", "model.safetensors", "tokenizer.json", "seen.json", "rerank.json", "run.json", "log.jsonl",
        "curves.png",
    }  # fmt: skip
    assert (tiny_run.root / "curves.png").read_bytes().startswith(b"\x89PNG")
    info = tiny_run.info
    assert (info.name, info.recipe_name, info.dataset, info.epochs) == ("tiny", "tiny", "squares", 3)
    assert info.manifest_sha256 == squares.manifest.sha256
    assert info.train_sha256 == squares.split("train").sha256
    assert info.selection_sha256 == squares.split("val").sha256
    assert tiny_run.seen.train_images == set(squares.split("train").image_sha256)
    assert tiny_run.seen.selection_images == set(squares.split("val").image_sha256)
    assert is_own(tiny_run, squares)
    loaded = tiny_run.load()
    assert not loaded.model.training
    assert loaded.sha256 == info.weights_sha256
    assert info.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())


def test_the_best_validation_is_kept_and_gammas_are_chosen_on_it(tiny_run: Run) -> None:
    validations = events(tiny_run.root, "validation")
    best = max(validations, key=lambda event: event["mr"])  # the first among equals
    assert (tiny_run.info.best.epoch, round(tiny_run.info.best.mr, 3)) == (best["epoch"], round(best["mr"], 3))
    chosen = read_params(tiny_run)
    assert (list(chosen.by_scores), chosen.split_sha256) == (["cosine"], tiny_run.info.selection_sha256)
    params = chosen.of("cosine")
    assert params.smr is not None
    assert params.smr.gamma1 in tiny_run.recipe.evaluate.smr_gammas
    assert params.smr_mr is not None
    assert params.smr_mr >= tiny_run.info.best.mr


def test_kept_weights_give_the_mr_that_was_validated(tiny_run: Run, squares: PreparedDataset) -> None:
    from cmpagl_core.encoders.encode import encode_captions, encode_images
    from cmpagl_core.evaluation.recall import Matches, recall
    from cmpagl_core.ranking.scores import ScoreMatrix

    loaded, selection = tiny_run.load(), squares.split("val")
    images = encode_images(loaded, selection.images, Silent())
    texts = encode_captions(loaded, selection.captions, Silent())
    scores = ScoreMatrix.from_features(images, texts)
    assert recall(scores, Matches.own(selection.caption_image, len(selection))).mr == pytest.approx(
        tiny_run.info.best.mr
    )


def test_the_log_has_every_step_epoch_and_validation(tiny_run: Run) -> None:
    kinds = [event["event"] for event in read_journal(tiny_run.log_path) if event["event"] != "warning"]
    assert kinds == ["begin", *(["step"] * 3 + ["epoch", "validation"]) * 3, "end"]
    step = events(tiny_run.root, "step")[4]
    assert (step["epoch"], step["step"]) == (2, 5)
    assert set(step["terms"]) == {"itc", "triplet", "itm", "mlm"}
    assert step["gradient_norm"] > 0
    epoch = events(tiny_run.root, "epoch")[0]
    assert set(epoch["gates"]) == {"stage 1", "stage 2", "stage 3", "stage 4"}
    assert sum(epoch["gradient_shares"].values()) == pytest.approx(1)
    assert -1 <= epoch["unmatched_cosine"] <= 1
    assert epoch["images_per_s"] > 0


def test_what_is_said_is_the_validation_of_each_epoch(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    told = Told()
    train(tiny_recipe("train.epochs=3", "train.validate_every_epochs=2"), squares, tmp_path / "run", progress=told)
    lines = [message for message in told.messages if message.startswith("epoch")]
    assert [line.partition(":")[0] for line in lines] == ["epoch 2", "epoch 3"]
    assert "validation mR" in lines[0]


def test_without_matplotlib_the_way_to_curves_is_said(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = train(tiny_recipe("train.epochs=1"), squares, tmp_path / "run", curves=True, progress=told)
    assert (
        "curves.png was not drawn: matplotlib is missing; install it with `pip install 'cmpagl[plots]'`"
        in told.messages
    )
    assert not (run.root / "curves.png").exists()


def test_choosing_on_test_is_refused(squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="choosing models or gammas on the test split"):
        train(tiny_recipe("data.selection.split=test"), squares, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_ends_a_training_that_does_not_improve(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe("train.epochs=9", "train.patience_epochs=2", "optim.lr=1.0e-30")
    run = train(recipe, squares, tmp_path / "run")
    assert (run.info.best.epoch, run.info.epochs) == (1, 3)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_way_out(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe("optim.warmup_fraction=0")
    beyond = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"lr": 1.0e30})})  # no recipe may ask it
    with pytest.raises(CmpaglError, match=r"not finite at step \d.*; train again with a lower optim\.lr"):
        train(beyond, squares, tmp_path / "run")


def test_a_frozen_backbone_never_changes_and_its_cache_is_used_again(
    squares: PreparedDataset, backbone_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    run = train(backbone_recipe(), squares, tmp_path / "first", progress=told)
    assert any(
        message.startswith("caching the frozen backbone's maps of 24 images in 8 views") for message in told.messages
    )

    def never(self: KeptImages, draws: Sequence[Draw]) -> torch.Tensor:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(KeptImages, "gather", never)
    again = Told()
    second = train(backbone_recipe(), squares, tmp_path / "second", progress=again)
    assert not any("caching" in message for message in again.messages)
    assert second.info.weights_sha256 == run.info.weights_sha256
    assert backbone_weights(run) == backbone_weights(
        train(backbone_recipe("train.epochs=1"), squares, tmp_path / "third")
    )


def test_a_backbone_is_tuned_from_its_epoch_on(
    squares: PreparedDataset, backbone_recipe: MakeRecipe, tmp_path: Path
) -> None:
    late = (
        "image_encoder.backbone_trainable=true",
        "image_encoder.backbone_unfreeze_epoch=1",
        "optim.image_lr_scale=1",
    )
    frozen = train(backbone_recipe(*late, "train.epochs=1"), squares, tmp_path / "frozen")
    both = ("train.epochs=2", "train.validate_every_epochs=2", "train.ema_decay=0.5")
    tuned = train(backbone_recipe(*late, *both), squares, tmp_path / "tuned")
    assert backbone_weights(frozen) != backbone_weights(tuned)


def test_without_pre_alignment_itm_ranks(squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = train(tiny_recipe("losses.pre_alignment=false", "train.epochs=1"), squares, tmp_path / "run")
    assert set(events(run.root, "step")[0]["terms"]) == {"itm", "mlm"}
    assert run.info.best.mr > 0
    assert read_params(run).of("itm@0").smr is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_to_finite_weights(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_computes", lambda *_: True)
    run = train(tiny_recipe(f"train.precision={precision}", "train.epochs=1"), squares, tmp_path / "run")
    assert run.info.precision == precision
    assert all(bool(value.isfinite().all()) for value in read_tensors(run.weights_path).values())


def test_without_instructions_for_half_precision_a_training_is_that_in_fp32_and_says_so(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_computes", lambda *_: False)
    told = Told()
    asked = train(tiny_recipe("train.precision=bf16", "train.epochs=1"), squares, tmp_path / "a", progress=told)
    exact = train(tiny_recipe("train.precision=fp32", "train.epochs=1"), squares, tmp_path / "b")
    assert "cpu has no bf16 instructions, so this training runs in fp32" in told.messages
    assert asked.info.precision == exact.info.precision == "fp32"
    found, expected = read_tensors(asked.weights_path), read_tensors(exact.weights_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_starving_loader_is_told_and_logged(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather, asked_at = KeptImages.gather, [time.monotonic()]

    def slow(self: KeptImages, draws: Sequence[Draw]) -> torch.Tensor:
        time.sleep(0.3 + 2 * (time.monotonic() - asked_at[-1]))  # longer than the step before, on any machine
        asked_at.append(time.monotonic())
        return gather(self, draws)

    monkeypatch.setattr(KeptImages, "gather", slow)
    told = Told()
    run = train(tiny_recipe("train.epochs=1"), squares, tmp_path / "run", progress=told)
    assert [event["name"] for event in events(run.root, "warning")].count("starving loader") == 1
    assert any(message.startswith("warning: starving loader: ") for message in told.messages)


def test_a_full_disk_stops_the_training_which_goes_on_when_there_is_room(
    tiny_run: Run, squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_EVERY_S", 0.0)
    validate_epoch = loop.validate_epoch
    root = tmp_path / "run"

    def until_full(session: loop.Training) -> None:
        validate_epoch(session)
        if session.position.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(loop, "validate_epoch", until_full)
    try:
        with pytest.raises(CmpaglError, match=r"cannot write .*state\.safetensors .*nothing was left half written"):
            train(tiny_recipe(), squares, root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (root / "resume").iterdir()] == ["state.safetensors"]
    monkeypatch.setattr(loop, "validate_epoch", validate_epoch)
    assert train(tiny_recipe(), squares, root, resume=True).info.weights_sha256 == tiny_run.info.weights_sha256


def test_a_loss_that_is_no_number_names_its_batch_and_keeps_the_last_good_state(
    tiny_run: Run, squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_EVERY_S", 0.0)
    accumulate, root = loop.accumulate, tmp_path / "run"

    def poisoned(learner: Any, batches: Sequence[PairBatch], epoch: int, step: int, with_shares: bool) -> Any:
        if epoch == 1:
            batches = [replace(batch, images=batch.images * float("nan")) for batch in batches]
        return accumulate(learner, batches, epoch, step, with_shares)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", poisoned)
        with pytest.raises(CmpaglError, match=r"the features are not finite at step \d+ of epoch 2; train again"):
            train(tiny_recipe(), squares, root)
    state = read_tensors(root / "resume" / "state.safetensors")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())
    assert train(tiny_recipe(), squares, root, resume=True).info.weights_sha256 == tiny_run.info.weights_sha256


def test_an_image_that_is_changed_while_it_is_trained_on_stops_the_training(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = squares.split("train").paths[0]
    content, times = path.read_bytes(), path.stat()
    train_epoch = loop.train_epoch

    def spoils(session: loop.Training, advance: Any) -> None:
        train_epoch(session, advance)
        path.write_bytes(content[:-1] + b"?")

    monkeypatch.setattr(loop, "train_epoch", spoils)
    try:
        with pytest.raises(
            MismatchError, match=rf"{re.escape(str(path))} has changed since .* was prepared; restore it"
        ):
            train(tiny_recipe(), squares, tmp_path / "run")
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (tmp_path / "run" / "resume" / "state.safetensors").is_file()
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_changed_recipe_or_data_set_is_not_gone_on_with(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(session: loop.Training, advance: object) -> None:
        raise KeyboardInterrupt

    root = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_epoch", stop)
        with pytest.raises(CmpaglError, match="resume it with `cmpagl train --resume --name run`"):
            train(tiny_recipe(), squares, root)
    with pytest.raises(MismatchError, match="was started with another recipe and cannot be resumed"):
        train(tiny_recipe("optim.lr=1.0e-3"), squares, root, resume=True)
    with pytest.raises(DataError, match=r"run is not a finished run: .*finish it with `cmpagl train --resume`"):
        open_run(root)


def test_another_tokenizer_is_not_gone_on_with(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(session: loop.Training) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stopped)
        with pytest.raises(InterruptedByUserError):
            train(tiny_recipe(), squares, tmp_path / "run")
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(path.read_text().replace("field", "dleif"))
    with pytest.raises(
        MismatchError, match=r"tokenizer\.json is not the tokenizer with which this training started; train again"
    ):
        train(tiny_recipe(), squares, tmp_path / "run", resume=True)


def test_there_is_nothing_to_resume_in_an_empty_folder(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no training to resume; start one with `cmpagl train RECIPE`"):
        train(tiny_recipe(), squares, tmp_path / "run", resume=True)


def test_a_broken_state_is_named(squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    state = tmp_path / "run" / "resume" / "state.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"state\.safetensors is not a training state"):
        train(tiny_recipe(), squares, tmp_path / "run", resume=True)


def backbone_weights(run: Run) -> list[float]:
    tensors = read_tensors(run.weights_path)
    return [
        float(value.double().sum())
        for name, value in sorted(tensors.items())
        if name.startswith("image_encoder.patch_embed.body.") and name.endswith("weight")
    ]


def test_a_balanced_run_ranks_by_its_bank(squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = tiny_recipe("train.balance_images=5", "train.epochs=1")
    run = train(recipe, squares, tmp_path / "balanced")
    balance = run.load().model.balance
    assert balance is not None
    assert len(balance.image_bank) == 5
    assert balance.scale.item() == pytest.approx(read_tensors(run.weights_path)["logit_scale"].exp().item())
    encoder, split = SplitEncoder(run), squares.split("val")
    plain = encoder.features(split)  # what an index holds
    less = encoder.potentials(plain)
    cosine = plain.image_features[0] @ plain.text_features[1]
    scorer, pair = RunScorer(encoder), (np.array([0]), np.array([1]))
    assert scorer.offers(ChosenParams()).bases == ("cosine", "balanced", "itm")
    scores = scorer.scores(split, None)
    np.testing.assert_allclose(scores("cosine").at(*pair), cosine, atol=1e-5)
    np.testing.assert_allclose(scores("balanced").at(*pair), cosine - less[0][0] - less[1][1], atol=1e-5)
