"""`evaluate`, `compare` and `tune` on the command line: JSON as promised, refusals with the right exit code."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.export import export_features
from cmpagl_core.errors import ExitCode
from cmpagl_core.files import sha256_file
from cmpagl_core.progress import Silent
from cmpagl_core.runs import open_run, write_info
from tests.conftest import Cmpagl

QUICK = ("--samples", "10")


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny data set and its run, to be changed at will."""
    shutil.copytree(tiny_run.parent.parent, tmp_path, dirs_exist_ok=True)
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
    assert json.loads((workspace / "runs/tiny/evaluations/test-rsitr.json").read_text()) == found
    assert (workspace / "runs/tiny/evaluations/test-rsitr.npz").is_file()


def test_all_re_rankings_and_tuning_go_together(cmpagl: Cmpagl, workspace: Path) -> None:
    chosen = document(cmpagl, "tune", "smr", "--gammas", "0,1", "--out", workspace / "grid.png")
    assert len(chosen["grid"]) == 4
    assert chosen["split"] == "selection"
    found = document(cmpagl, "evaluate", "--rerank", "all", "--itm-k", "2", *QUICK)
    assert [row["stage"] for row in found["rows"]] == [
        "cosine", "cosine+smr", "itm", "itm+smr", "galr", "csls", "dual_softmax", "sinkhorn",
    ]  # fmt: skip
    assert found["stamp"]["smr"] == {key: chosen[key] for key in ("form", "gamma1", "gamma2")}
    assert found["stamp"]["itm_k"] == 2


def test_tuning_on_the_test_split_is_refused_and_nothing_kept(cmpagl: Cmpagl, workspace: Path) -> None:
    before = (workspace / "runs/tiny/run.json").read_bytes()
    result = cmpagl("tune", "smr", "--split", "test")
    assert result.exit_code == ExitCode.GUARD
    assert "choosing SMR's gammas on the test split would make its recalls meaningless" in result.output
    assert cmpagl("tune", "smr", "--gammas", "0", "--no-keep", "--quiet").exit_code == ExitCode.DONE
    assert (workspace / "runs/tiny/run.json").read_bytes() == before
    wrong = cmpagl("tune", "smr", "--gammas", "0;1")
    assert wrong.exit_code == ExitCode.USAGE
    assert "--gammas '0;1' is not a list of numbers" in wrong.output


def test_features_are_evaluated_and_re_ranking_chosen_on_others(cmpagl: Cmpagl, workspace: Path) -> None:
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    for split in ("val", "test"):
        export_features(run, prepared.split(split), workspace / f"{split}.safetensors", Silent(), run.load().device)
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
    assert "is of the very split that is evaluated" in same.output


def test_a_constant_matrix_gives_chance_with_the_flag(cmpagl: Cmpagl, workspace: Path) -> None:
    scores = save_scores(workspace / "S.npy", workspace / "data/tiny", constant=True)
    found = document(cmpagl, "evaluate", "--scores", scores, "--data", "tiny", "--split", "test", *QUICK)
    assert found["rows"][0]["t2i"]["r1"] == pytest.approx(25.0)
    assert found["rows"][0]["bounds"]["t2i"]["r1"] == [0.0, 100.0]
    result = cmpagl("evaluate", "--scores", scores, *QUICK)
    assert "ties: the order of equal scores decides more than 0.1 of a recall" in result.stdout
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
    assert "must not stand in one column: protocol is rsitr (tiny), duplicate-aware" in " ".join(refused.output.split())
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
        assert kept == alone
        assert {"bounds", "ci95"} <= found["rows"][0].keys()
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    features = workspace / "test.safetensors"
    export_features(run, prepared.split("test"), features, Silent(), run.load().device)
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
    call = ("tune", "sensitivity", "--gammas", "0,1,4", "--samples", "20", "--out", workspace / "grid.png")
    found = document(cmpagl, *call)
    assert (found["run"], found["dataset"], found["split"]) == ("tiny", "tiny", "val")
    names = [setting["reranking"] for setting in found["settings"]]
    assert names == ["smr multiply"] * 9 + ["smr add"] * 9 + ["galr", "csls"] + ["dual_softmax"] * 4 + ["sinkhorn"] * 4
    chosen = document(cmpagl, "tune", "smr", "--gammas", "0,1,4", "--no-keep", "--out", workspace / "smr.png")
    by_tuning = [point["mr"] for point in chosen["grid"]]
    assert [setting["mr"] for setting in found["settings"][:9]] == pytest.approx(by_tuning)
    assert (workspace / "grid.png").is_file()
    assert (workspace / "runs/tiny/run.json").read_bytes() == before
    rows = list(csv.DictReader(io.StringIO(cmpagl(*call, "--format", "csv").stdout)))
    assert len(rows) == 28
    assert len(cmpagl(*call, "--format", "markdown", "--quiet").stdout.splitlines()) == 2 + 4 + 10


@pytest.mark.parametrize("split", ["test", "all"])
@pytest.mark.parametrize("what", ["smr", "sensitivity"])
def test_choosing_among_test_pictures_is_refused(cmpagl: Cmpagl, workspace: Path, what: str, split: str) -> None:
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


@pytest.fixture
def other_data(workspace: Path) -> Path:
    """Another data set, whose test pictures are the ones that the tiny run was trained on."""
    prepared = workspace / "data/other"
    shutil.copytree(workspace / "data/tiny", prepared)
    images = (prepared / "images.csv").read_text()
    swapped = images.replace(",train,", ",swap,").replace(",test,", ",train,").replace(",swap,", ",test,")
    (prepared / "images.csv").write_text(swapped)
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest |= {"name": "other", "pictures_sha256": "0" * 64}
    manifest["files"]["images.csv"] = sha256_file(prepared / "images.csv")
    (prepared / "manifest.json").write_text(json.dumps(manifest))
    run = open_run(workspace / "runs/tiny")
    write_info(run.root, replace(run.info, manifest_sha256=open_prepared(workspace / "data/tiny").manifest.sha256))
    return prepared


def test_shared_pictures_and_captions_are_said_wherever_the_number_stands(
    cmpagl: Cmpagl, workspace: Path, other_data: Path
) -> None:
    said = "trained on tiny, which shares 6 of 6 pictures and 12 of 12 captions with what is tested"
    call = ("evaluate", "--data", "other", "--itm-k", "0", *QUICK)
    assert said in cmpagl(*call).stdout
    assert said in cmpagl(*call, "--format", "markdown").stdout.splitlines()
    assert f"% {said}" in cmpagl(*call, "--format", "latex").stdout.splitlines()
    found = document(cmpagl, *call)
    assert found["stamp"]["overlap"]["pictures"] == 6
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
    assert on_train["stamp"]["overlap"]["pictures"] == 6


def test_a_feature_file_that_says_nonsense_of_what_was_shared_is_refused(cmpagl: Cmpagl, workspace: Path) -> None:
    prepared, run = open_prepared(workspace / "data/tiny"), open_run(workspace / "runs/tiny")
    path = workspace / "F.safetensors"
    export_features(run, prepared.split("test"), path, Silent(), run.load().device, overlap="{}")
    refused = cmpagl("evaluate", "--features", path)
    assert refused.exit_code == ExitCode.DATA
    assert "does not say what was shared; export the features again" in refused.output
