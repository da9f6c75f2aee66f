"""`evaluate`, `compare` and `tune` on the command line: JSON as promised, refusals with the right exit code."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.export import export_features
from cmpagl_core.encoders.feature_set import load_feature_set, save_feature_set
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import ExitCode
from cmpagl_core.files import sha256_file
from cmpagl_core.runs import open_run
from tests.conftest import Cmpagl, rewrite_info

QUICK = ("--samples", "10")


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny data set and its run, to be changed at will."""
    leftovers = shutil.ignore_patterns("indexes", "evaluations", "cache")  # of other tests that use the same run
    shutil.copytree(tiny_run.parent.parent, tmp_path, dirs_exist_ok=True, ignore=leftovers)
    return tmp_path


def save_scores(path: Path, prepared: Path, split: str = "test", constant: bool = False) -> Path:
    found = open_prepared(prepared).split(split)
    shape = (len(found), len(found.captions))
    np.save(path, np.ones(shape, np.float32) if constant else np.random.default_rng(0).standard_normal(shape))
    return path


def document(cmpagl: Cmpagl, *arguments: str | Path) -> Any:
    result = cmpagl(*arguments, "--format", "json", "--quiet")
    assert result.exit_code == ExitCode.DONE, result.output
    return json.loads(result.stdout)


def test_a_run_is_evaluated_on_test_and_keeps_the_result(cmpagl: Cmpagl, workspace: Path) -> None:
    found = document(cmpagl, "evaluate", *QUICK)
    assert [row["stage"] for row in found["rows"]] == ["cosine", "itm"]
    for row in found["rows"]:
        assert {"stage", "i2t", "t2i", "mr", "bounds", "ci95"} <= row.keys()
        assert set(row["i2t"]) == set(row["t2i"]) == {"r1", "r5", "r10"}
        assert row["i2t"]["r10"] == row["t2i"]["r10"] == 100.0
    assert found["stamp"]["split"] == "test"
    assert found["stamp"]["protocol"] == "rsitr"
    arrays = sha256_file(workspace / "runs/tiny/evaluations/test-rsitr.npz")
    kept = json.loads((workspace / "runs/tiny/evaluations/test-rsitr.json").read_text())
    assert kept == {**found, "arrays_sha256": arrays}
    assert (workspace / "runs/tiny/evaluations/test-rsitr.npz").is_file()


def test_all_re_rankings_and_tuning_go_together(cmpagl: Cmpagl, workspace: Path) -> None:
    chosen = document(cmpagl, "tune", "smr", "--gammas", "0,1", "--out", workspace / "grid.png")
    assert len(chosen["grid"]) == 4
    assert chosen["split"] == "selection"
    found = document(cmpagl, "evaluate", "--rerank", "all", "--itm-k", "2", *QUICK)
    assert [row["stage"] for row in found["rows"]] == [
        "cosine", "cosine+smr", "itm", "itm+smr", "galr", "csls", "dual_softmax", "sinkhorn",
    ]  # fmt: skip
    (step,) = found["stamp"]["rerank"]["cosine+smr"]
    assert step["smr"] == {key: chosen[key] for key in ("form", "gamma1", "gamma2")}
    assert {stage: steps[0]["chosen_on"] for stage, steps in found["stamp"]["rerank"].items()} == {
        "cosine+smr": "cosine", "itm+smr": "itm@2", "dual_softmax": "cosine", "sinkhorn": "cosine",
    }  # fmt: skip
    assert found["stamp"]["itm_k"] == 2


def test_tuning_on_the_test_split_is_refused_and_nothing_kept(cmpagl: Cmpagl, workspace: Path) -> None:
    before = {path.name: path.read_bytes() for path in (workspace / "runs/tiny").iterdir()}
    result = cmpagl("tune", "smr", "--split", "test")
    assert result.exit_code == ExitCode.GUARD
    assert "choosing SMR's gammas on the test split would make its recalls meaningless" in result.output
    assert cmpagl("tune", "smr", "--gammas", "0", "--no-keep", "--quiet").exit_code == ExitCode.DONE
    now = {path.name: path.read_bytes() for path in (workspace / "runs/tiny").iterdir() if path.suffix != ".png"}
    assert now == before
    wrong = cmpagl("tune", "smr", "--gammas", "0;1")
    assert wrong.exit_code == ExitCode.USAGE
    assert "--gammas '0;1' is not a list of numbers" in wrong.output


def test_features_are_evaluated_and_re_ranking_chosen_on_others(cmpagl: Cmpagl, workspace: Path) -> None:
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    for split in ("val", "test"):
        export_features(SplitEncoder(run), prepared.split(split), workspace / f"{split}.safetensors")
    test, val = workspace / "test.safetensors", workspace / "val.safetensors"
    plain = document(cmpagl, "evaluate", "--features", test, *QUICK)
    assert [row["stage"] for row in plain["rows"]] == ["cosine"]
    of_run = document(cmpagl, "evaluate", "--rerank", "none", "--itm-k", "0", *QUICK)
    assert plain["rows"][0] == of_run["rows"][0]
    chosen = document(cmpagl, "evaluate", "--features", test, "--choose-on", val, "--rerank", "all", *QUICK)
    assert [row["stage"] for row in chosen["rows"]] == [
        "cosine",
        "cosine+smr",
        "galr",
        "csls",
        "dual_softmax",
        "sinkhorn",
    ]
    refused = cmpagl("evaluate", "--features", test, "--choose-on", test)
    assert refused.exit_code == ExitCode.GUARD
    assert "on the test split" in refused.output
    same = cmpagl("evaluate", "--features", val, "--choose-on", val)
    assert same.exit_code == ExitCode.GUARD
    assert "is of the split under evaluation" in same.output


def test_a_constant_matrix_gives_chance_with_the_flag(cmpagl: Cmpagl, workspace: Path) -> None:
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny", constant=True)
    found = document(cmpagl, "evaluate", "--scores", scores, "--data", "tiny", "--split", "test", *QUICK)
    assert found["rows"][0]["t2i"]["r1"] == pytest.approx(25.0)
    assert found["rows"][0]["bounds"]["t2i"]["r1"] == [0.0, 100.0]
    result = cmpagl("evaluate", "--scores", scores, *QUICK)
    assert "ties: the order of equal scores moves a recall by more than 0.1" in result.stdout
    assert "mR 50.00 to 100.00" in result.stdout


def test_bad_matrices_get_one_sentence_and_the_right_exit_code(cmpagl: Cmpagl, workspace: Path) -> None:
    path = workspace / "S.npy"
    cases = [
        (np.full((4, 8), np.nan), ExitCode.DATA, "scores[0, 0] is nan, not a finite number"),
        (np.zeros((4, 9)), ExitCode.MISMATCH, "S.npy is 4 x 9, but the test split of tiny has 4 images x 8 captions"),
        (np.zeros(4), ExitCode.DATA, "not a matrix of numbers"),
        (np.array([["a"]]), ExitCode.DATA, "not a matrix of numbers"),
        (np.array([[None]]), ExitCode.DATA, "S.npy is not a .npy file of plain numbers"),
    ]
    for array, code, words in cases:
        np.save(path, array, allow_pickle=True)
        result = cmpagl("evaluate", "--scores", path)
        assert (result.exit_code, words in " ".join(result.output.split())) == (code, True), result.output
        assert "Traceback" not in result.output
    missing = cmpagl("evaluate", "--scores", workspace / "none.npy")
    assert missing.exit_code == ExitCode.DATA


def test_options_that_exclude_each_other_are_refused(cmpagl: Cmpagl, workspace: Path) -> None:
    for arguments in (
        ("--features", "F", "--scores", "S"),
        ("--features", "F", "--run", "tiny"),
        ("--choose-on", "F"),
        ("--rerank", "mrs"),
    ):
        assert cmpagl("evaluate", *arguments).exit_code == ExitCode.USAGE
    assert cmpagl("evaluate", "--split", "nosuch").exit_code == ExitCode.DATA


def test_tables_for_people_papers_and_programs(cmpagl: Cmpagl, workspace: Path) -> None:
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny")
    call = ("evaluate", "--scores", scores, "--rerank", "csls", *QUICK)
    assert "i2t R@1" in cmpagl(*call).stdout
    rows = list(csv.DictReader(io.StringIO(cmpagl(*call, "--format", "csv").stdout)))
    assert [row["stage"] for row in rows] == ["cosine", "csls"]
    assert float(rows[0]["mr_low"]) <= float(rows[0]["mr"]) <= float(rows[0]["mr_high"])
    assert cmpagl(*call, "--format", "markdown").stdout.startswith("| stage | i2t R@1 |")
    assert r"\begin{tabular}" in cmpagl(*call, "--format", "latex").stdout
    grouped = document(cmpagl, *call, "--by", "scene")
    assert [(group["stage"], group["group"]) for group in grouped["groups"]] == [
        (stage, scene) for stage in ("cosine", "csls") for scene in ("north", "south")
    ]
    assert "words" in cmpagl(*call, "--by", "length").stdout


def test_a_run_compared_with_itself_differs_by_nothing(cmpagl: Cmpagl, workspace: Path) -> None:
    document(cmpagl, "evaluate", *QUICK)
    shutil.copytree(workspace / "runs/tiny", workspace / "runs/twin")
    found = document(cmpagl, "compare", "tiny", "twin")
    assert {row["p"] for row in found["rows"]} == {row["p_holm"] for row in found["rows"]} == {1.0}
    assert {row["delta"] for row in found["rows"]} == {0.0}
    of_files = document(cmpagl, "compare", workspace / "runs/tiny/evaluations/test-rsitr.json", "tiny,twin")
    assert {row["b_std"] for row in of_files["rows"]} == {0.0}
    assert "p (Holm)" in cmpagl("compare", "tiny", "twin", "--stage", "itm").stdout


def test_other_protocols_are_not_mixed_unless_told_to(cmpagl: Cmpagl, workspace: Path) -> None:
    document(cmpagl, "evaluate", *QUICK)
    document(cmpagl, "evaluate", "--protocol", "duplicate-aware", *QUICK)
    aware = workspace / "runs/tiny/evaluations/test-duplicate-aware.json"
    refused = cmpagl("compare", "tiny", aware)
    assert refused.exit_code == ExitCode.GUARD
    assert "results are not comparable: protocol is rsitr (tiny), duplicate-aware" in " ".join(refused.output.split())
    mixed = document(cmpagl, "compare", "tiny", aware, "--mix")
    assert mixed["mixed"][0].startswith("protocol is rsitr (tiny)")
    missing = cmpagl("compare", "tiny", "tiny", "--split", "val")
    assert missing.exit_code == ExitCode.DATA
    assert "run `cmpagl evaluate --run tiny --split val`" in " ".join(missing.output.split())


def test_both_protocols_come_in_one_document_and_are_kept_apart(cmpagl: Cmpagl, workspace: Path) -> None:
    both = document(cmpagl, "evaluate", "--protocol", "both", *QUICK)
    for found, protocol in ((both, "rsitr"), (both["duplicate_aware"], "duplicate-aware")):
        assert found["stamp"]["protocol"] == protocol
        alone = document(cmpagl, "evaluate", "--protocol", protocol, *QUICK)
        assert (found["stamp"], found["rows"]) == (alone["stamp"], alone["rows"])
        kept = json.loads((workspace / f"runs/tiny/evaluations/test-{protocol}.json").read_text())
        assert {key: value for key, value in kept.items() if key != "arrays_sha256"} == alone
        assert {"bounds", "ci95"} <= found["rows"][0].keys()
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    features = workspace / "test.safetensors"
    export_features(SplitEncoder(run), prepared.split("test"), features)
    of_features = document(cmpagl, "evaluate", "--features", features, "--protocol", "both", *QUICK)
    assert of_features["duplicate_aware"]["rows"][0] == both["duplicate_aware"]["rows"][0]
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny")
    table = cmpagl("evaluate", "--scores", scores, "--protocol", "both", *QUICK).stdout
    assert table.index("rsitr (4 images") < table.index("duplicate-aware (4 images")
    for format in ("csv", "jsonl"):
        refused = cmpagl("evaluate", "--scores", scores, "--protocol", "both", "--format", format)
        assert refused.exit_code == ExitCode.USAGE
        assert f"--format {format} would put both protocols into one column" in refused.output


def test_sensitivity_shows_the_whole_grid_and_keeps_nothing(cmpagl: Cmpagl, workspace: Path) -> None:
    before = (workspace / "runs/tiny/run.json").read_bytes()
    call = ("tune", "sensitivity", "--gammas", "0,1,4", "--samples", "20")
    found = document(cmpagl, *call, "--out", workspace / "grid.png")
    assert (found["run"], found["dataset"], found["split"]) == ("tiny", "tiny", "val")
    names = [setting["reranking"] for setting in found["settings"]]
    assert names == ["smr multiply"] * 9 + ["smr add"] * 9 + ["galr", "csls"] + ["dual_softmax"] * 4 + ["sinkhorn"] * 4
    chosen = document(cmpagl, "tune", "smr", "--gammas", "0,1,4", "--no-keep")
    by_tuning = [point["mr"] for point in chosen["grid"]]
    assert [setting["mr"] for setting in found["settings"][:9]] == pytest.approx(by_tuning)
    assert (workspace / "grid.png").is_file()
    assert (workspace / "runs/tiny/run.json").read_bytes() == before
    rows = list(csv.DictReader(io.StringIO(cmpagl(*call, "--format", "csv").stdout)))
    assert len(rows) == 28
    assert len(cmpagl(*call, "--format", "markdown", "--quiet").stdout.splitlines()) == 2 + 4 + 10


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize("what", ["smr", "sensitivity"])
def test_choosing_among_test_images_is_refused(cmpagl: Cmpagl, workspace: Path, what: str, split: str) -> None:
    result = cmpagl("tune", what, "--split", split)
    assert result.exit_code == ExitCode.GUARD
    assert "would make its recalls meaningless" in result.output


def test_ranks_of_the_matches_are_shown_when_asked_for_and_always_in_machine_formats(
    cmpagl: Cmpagl, workspace: Path
) -> None:
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny")
    call = ("evaluate", "--scores", scores, *QUICK)
    found = document(cmpagl, *call)["rows"][0]
    row = next(csv.DictReader(io.StringIO(cmpagl(*call, "--format", "csv").stdout)))
    for side in ("i2t", "t2i"):
        for key in ("mrr", "median_rank", "ndcg10", "map"):
            assert float(row[f"{side}_{key}"]) == found[f"{side}_ranks"][key]
    table = cmpagl(*call, "--ranks", "--format", "markdown").stdout
    assert f"| {found['i2t_ranks']['mrr']:.2f} |" in table
    assert "nDCG@10" not in cmpagl(*call, "--format", "markdown").stdout


def test_scores_of_the_tested_split_choose_nothing_under_any_name(cmpagl: Cmpagl, workspace: Path) -> None:
    tested = save_scores(workspace / "T.npy", workspace / "data/tiny")
    call = ("evaluate", "--scores", tested, "--data", "tiny", "--rerank", "all", *QUICK)
    unnamed = cmpagl(*call, "--choose-on", save_scores(workspace / "V.npy", workspace / "data/tiny", "val"))
    assert unnamed.exit_code == ExitCode.USAGE
    assert "V.npy belongs to; pass --choose-split val" in " ".join(unnamed.output.split())
    for split in ("test", "all"):
        assert cmpagl(*call, "--choose-on", "V.npy", "--choose-split", split).exit_code == ExitCode.GUARD
    found = document(cmpagl, *call, "--choose-on", "V.npy", "--choose-split", "val")
    assert found["stamp"]["selection_sha256"] == open_prepared(workspace / "data/tiny").split("val").sha256
    np.save("same.npy", np.load(tested).astype(np.float64))
    prepare_with_splits(workspace / "data/even", {"train": "val"})  # val and test of equal shape, as UCM's are
    even = open_prepared(workspace / "data/even")
    keep_images(even.root, [*even.split("test").image_ids, *even.split("val").image_ids[:4]])
    refused = cmpagl(*call, "--choose-on", "same.npy", "--choose-split", "val", "--data", "even")
    assert refused.exit_code == ExitCode.GUARD
    assert "same.npy has the same scores as" in " ".join(refused.output.split())
    assert cmpagl(*call, "--choose-split", "val").exit_code == ExitCode.USAGE


def keep_images(root: Path, ids: Sequence[str]) -> None:
    """Leave all other images and their captions out of a prepared data set."""
    manifest = json.loads((root / "manifest.json").read_text())
    for file in manifest["files"]:
        head, *lines = (root / file).read_text().splitlines(keepends=True)
        (root / file).write_text(head + "".join(line for line in lines if any(f"{image}," in line for image in ids)))
        manifest["files"][file] = sha256_file(root / file)
    (root / "manifest.json").write_text(json.dumps(manifest))


def prepare_with_splits(target: Path, new_name: dict[str, str], name: str = "") -> Path:
    """The tiny data set with splits that are called otherwise, as if it had been prepared with another seed."""
    shutil.copytree(target.parent / "tiny", target)
    table = (target / "images.csv").read_text().splitlines(keepends=True)
    for old, new in new_name.items():
        table = [line.replace(f",{old},", f",{new}!,") for line in table]
    (target / "images.csv").write_text("".join(table).replace("!,", ","))
    manifest = json.loads((target / "manifest.json").read_text())
    manifest |= {"name": name or target.name, "images_sha256": "0" * 64}
    manifest["files"]["images.csv"] = sha256_file(target / "images.csv")
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_features_with_a_tested_image_choose_nothing_whatever_their_data_set(cmpagl: Cmpagl, workspace: Path) -> None:
    prepare_with_splits(workspace / "data/other", {"val": "test", "test": "val"})
    for data, split in (("tiny", "test"), ("tiny", "val"), ("other", "val")):
        export = ("export", "--data", data, "--split", split, "--out", f"{data}-{split}.safetensors")
        assert cmpagl(*export).exit_code == ExitCode.DONE
    refused = cmpagl("evaluate", "--features", "tiny-test.safetensors", "--choose-on", "other-val.safetensors")
    assert refused.exit_code == ExitCode.GUARD
    assert "is of the split under evaluation" in refused.output
    merged = load_feature_set(Path("other-val.safetensors"))
    save_feature_set(Path("m.safetensors"), replace(merged, info=replace(merged.info, split_sha256="0" * 64)))
    refused = cmpagl("evaluate", "--features", "tiny-test.safetensors", "--choose-on", "m.safetensors")
    assert refused.exit_code == ExitCode.GUARD
    assert "m.safetensors has 4 of the 4 images under evaluation" in " ".join(refused.output.split())
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny")
    assert cmpagl("evaluate", "--scores", scores, "--choose-on", "m.safetensors").exit_code == ExitCode.GUARD
    call = ("evaluate", "--features", "tiny-test.safetensors", "--choose-on", "tiny-val.safetensors")
    assert cmpagl(*call, *QUICK).exit_code == ExitCode.DONE
    assert cmpagl(*call, "--choose-split", "val").exit_code == ExitCode.USAGE


def test_exported_scores_say_what_they_are_of(cmpagl: Cmpagl, workspace: Path) -> None:
    for split in ("val", "test"):
        (written,) = document(cmpagl, "export", "--scores", "--split", split, "--out", f"{split}.npy")
        assert (written["dataset"], written["split"], written["base"]) == ("tiny", split, "cosine")
    call = ("evaluate", "--scores", "test.npy", "--rerank", "all", *QUICK)
    found = document(cmpagl, *call, "--choose-on", "val.npy")
    of_run = document(cmpagl, "evaluate", "--itm-k", "0", "--rerank", "all", *QUICK)
    assert [row["mr"] for row in found["rows"]] == [row["mr"] for row in of_run["rows"]]
    assert found["stamp"]["rerank"] == of_run["stamp"]["rerank"]
    wrong = cmpagl("evaluate", "--scores", "val.npy", "--split", "test")
    assert wrong.exit_code == ExitCode.MISMATCH
    assert "val.npy has scores of the val split of tiny, not of test of tiny" in " ".join(wrong.output.split())
    assert cmpagl(*call, "--choose-on", "val.npy", "--choose-split", "train").exit_code == ExitCode.MISMATCH
    assert cmpagl(*call, "--choose-on", "test.npy").exit_code == ExitCode.GUARD
    np.save("val.npy", np.load("test.npy"))
    changed = cmpagl(*call, "--choose-on", "val.npy")
    assert changed.exit_code == ExitCode.MISMATCH
    assert "does not describe the present val.npy" in " ".join(changed.output.split())
    assert cmpagl("export", "--scores", "--model", "open_clip:x").exit_code == ExitCode.USAGE


def test_a_data_set_prepared_anew_is_never_taken_for_the_one_that_was_trained_on(
    cmpagl: Cmpagl, workspace: Path
) -> None:
    """As after `prepare folder --seed 7` over the data set of a run: other images in each split."""
    rewrite_info(workspace / "runs/tiny", dataset_root="data/tiny")
    prepare_with_splits(workspace / "data/anew", {"train": "test", "test": "train"}, name="tiny")
    shutil.rmtree(workspace / "data/tiny")
    (workspace / "data/anew").rename(workspace / "data/tiny")
    for arguments in (
        ("evaluate",), ("tune", "smr"), ("tune", "sensitivity"), ("index",), ("export",), ("report",),
        ("retrieve", "a field"), ("ablate", "--no-itc"),
    ):  # fmt: skip
        refused = cmpagl(*arguments)
        assert refused.exit_code == ExitCode.MISMATCH, (arguments, refused.output)
        words = " ".join(refused.output.split())
        assert "data/tiny was prepared again with other content since" in words
        assert "--data" in words
    found = document(cmpagl, "evaluate", "--data", "tiny", "--rerank", "all", *QUICK)
    assert found["stamp"]["overlap"]["images"] == 6
    said = "trained on tiny, which shares 6 of 6 images with the test set"
    assert said in found["notes"]
    assert [row["stage"] for row in found["rows"]] == ["cosine", "itm", "galr", "csls"]  # nothing was chosen
    assert not (workspace / "runs/tiny/rerank.json").exists()


def test_the_default_run_stays_the_newest_though_an_older_one_is_tuned(cmpagl: Cmpagl, workspace: Path) -> None:
    shutil.copytree(workspace / "runs/tiny", workspace / "runs/later")
    rewrite_info(workspace / "runs/tiny", made_at="2024-01-01T00:00:00.000000+00:00")
    assert (
        cmpagl("tune", "smr", "--run", "tiny", "--gammas", "0", "--out", "g.png", "--quiet").exit_code == ExitCode.DONE
    )
    assert document(cmpagl, "evaluate", "--run", "tiny", "--rerank", "sinkhorn", *QUICK)["stamp"]["model"] == "tiny"
    assert document(cmpagl, "evaluate", "--itm-k", "0", *QUICK)["stamp"]["model"] == "later"


@pytest.fixture
def other_data(workspace: Path) -> Path:
    """Another data set, whose test images are the ones that the tiny run was trained on."""
    return prepare_with_splits(workspace / "data/other", {"train": "test", "test": "train"})


def test_shared_images_and_captions_are_said_wherever_the_number_stands(
    cmpagl: Cmpagl, workspace: Path, other_data: Path
) -> None:
    said = "trained on tiny, which shares 6 of 6 images and 12 of 12 captions with the test set"
    call = ("evaluate", "--data", "other", "--itm-k", "0", *QUICK)
    assert said in cmpagl(*call).stdout
    assert said in cmpagl(*call, "--format", "markdown").stdout.splitlines()
    assert f"% {said}" in cmpagl(*call, "--format", "latex").stdout.splitlines()
    found = document(cmpagl, *call)
    assert found["stamp"]["overlap"]["images"] == 6
    assert said in found["notes"]
    exported = cmpagl("export", "--data", "other", "--out", "F.safetensors")
    assert said in exported.stderr
    of_features = document(cmpagl, "evaluate", "--features", "F.safetensors", *QUICK)
    assert of_features["stamp"]["overlap"] == found["stamp"]["overlap"]
    assert said in of_features["notes"]
    kept = workspace / "runs/tiny/evaluations/other-test-rsitr.json"
    assert f"{kept}: {said}" in document(cmpagl, "compare", str(kept), str(kept))["notes"]
    assert cmpagl("report", "--data", "other", "--quiet").exit_code == ExitCode.DONE
    assert said in Path("report.html").read_text()
    own = document(cmpagl, "evaluate", "--itm-k", "0", *QUICK)
    assert own["stamp"]["overlap"] is None
    on_train = document(cmpagl, "evaluate", "--split", "train", "--itm-k", "0", *QUICK)
    assert on_train["stamp"]["overlap"]["images"] == 6


def test_a_feature_file_that_says_nonsense_of_what_was_shared_is_refused(cmpagl: Cmpagl, workspace: Path) -> None:
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    path = workspace / "F.safetensors"
    export_features(SplitEncoder(run), prepared.split("test"), path, overlap="{}")
    refused = cmpagl("evaluate", "--features", path)
    assert refused.exit_code == ExitCode.DATA
    assert "is not a record of shared images; export the features again" in refused.output
