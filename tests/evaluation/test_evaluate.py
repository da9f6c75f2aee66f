"""A report says the same as plain loops, is kept without pickle, and foreign input is checked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import DataError, GuardError, MismatchError, UsageError
from cmpagl_core.evaluation import result
from cmpagl_core.evaluation.choosing import RunScorer, TuneRequest, choose_missing, params_for, tune_run
from cmpagl_core.evaluation.evaluate import EvaluateOptions, feature_scores, matrix_scores, run_scores
from cmpagl_core.evaluation.groups import by_length, by_scene
from cmpagl_core.evaluation.metrics import RankMetrics
from cmpagl_core.evaluation.recall import Recalls
from cmpagl_core.evaluation.result import ReportRow, RetrievalReport, Spans, load_report, report_path, save_report
from cmpagl_core.evaluation.score_files import open_scores
from cmpagl_core.evaluation.stages import Available, Stage, plan_stages
from cmpagl_core.files import sha256_file
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.kept_params import add_params, read_params
from cmpagl_core.ranking.rerank import ChosenParams, Gammas, RerankParams, Step
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.run_data import EvalSplit, open_tested
from cmpagl_core.runs import Run, open_run
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import Told, rewrite_info

CPU = torch.device("cpu")
QUICK = EvaluateOptions(samples=20)
GAMMAS = Gammas("multiply", 1.0, 2.0)


def session_in(root: Path) -> Session:
    return Session(Workspace(root), Silent(), lambda: CPU)


CHOSEN = ChosenParams({"cosine": RerankParams(GAMMAS, 20.0, 10.0)}, "5" * 64)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    return open_run(tmp_path / "runs" / "tiny")


@pytest.fixture(scope="module")
def split(tiny_prepared: Path) -> DataSplit:
    return open_prepared(tiny_prepared).split("all")


def some_scores(split: DataSplit, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (len(split), len(split.captions))).round(1).astype(np.float32)


def of_scores(
    array: np.ndarray, split: DataSplit, options: EvaluateOptions, params: ChosenParams | None = None
) -> RetrievalReport:
    return matrix_scores(array, EvalSplit(split), params=params).report(options)


def of_run(run: Run, split: DataSplit, options: EvaluateOptions = QUICK) -> RetrievalReport:
    return run_scores(scorer_of(run), EvalSplit(split), options.itm_k).report(options)


def scorer_of(run: Run) -> RunScorer:
    return RunScorer(SplitEncoder(run))


def test_scores_of_anybody_are_evaluated_as_by_hand(split: DataSplit) -> None:
    scores = np.random.default_rng(3).standard_normal((len(split), len(split.captions)))
    row = of_scores(scores, split, QUICK).first
    owner = split.caption_image
    for k, i2t, t2i in ((1, row.i2t.r1, row.t2i.r1), (5, row.i2t.r5, row.t2i.r5), (10, row.i2t.r10, row.t2i.r10)):
        best_texts = [np.argsort(-scores[image])[:k] for image in range(len(split))]
        best_images = [np.argsort(-scores[:, text])[:k] for text in range(len(owner))]
        assert i2t == pytest.approx(100 * np.mean([image in owner[best] for image, best in enumerate(best_texts)]))
        assert t2i == pytest.approx(100 * np.mean([owner[text] in best for text, best in enumerate(best_images)]))
    assert row.mr == pytest.approx((row.i2t.mean + row.t2i.mean) / 2)
    assert row.bounds.mr == (row.mr, row.mr)
    assert row.ci95.mr[0] <= row.mr <= row.ci95.mr[1]


def test_a_constant_matrix_gives_chance_and_the_flag(split: DataSplit) -> None:
    row = of_scores(np.ones((len(split), len(split.captions))), split, QUICK).first
    assert row.t2i.r1 == pytest.approx(100 / len(split))
    assert row.bounds.t2i["r1"] == (0.0, 100.0)
    assert row.ties_matter


def test_the_duplicate_aware_protocol_never_gives_less(split: DataSplit) -> None:
    scores = some_scores(split)
    aware = of_scores(scores, split, replace(QUICK, protocol="duplicate-aware"))
    plain = of_scores(scores, split, QUICK)
    assert aware.first.mr > plain.first.mr
    assert aware.stamp.protocol == "duplicate-aware"


def test_all_re_rankings_stand_below_the_plain_ranking(split: DataSplit) -> None:
    scores = some_scores(split)
    report = of_scores(scores, split, replace(QUICK, rerank="all"), params=CHOSEN)
    assert [row.stage for row in report.rows] == ["cosine", "cosine+smr", "galr", "csls", "dual_softmax", "sinkhorn"]
    assert report.stamp.rerank == {
        "cosine+smr": (Step("smr", smr=GAMMAS, chosen_on="cosine"),),
        "dual_softmax": (Step("dual_softmax", temperature=20.0, chosen_on="cosine"),),
        "sinkhorn": (Step("sinkhorn", temperature=10.0, chosen_on="cosine"),),
    }
    assert report.stamp.selection_sha256 == "5" * 64
    without = of_scores(scores, split, replace(QUICK, rerank="all"))
    assert [row.stage for row in without.rows] == ["cosine", "galr", "csls"]
    left_out = "left out cosine+smr, dual_softmax, sinkhorn: parameters were never chosen on a selection split"
    assert without.notes == (left_out,)


def test_chains_are_named_and_wrong_ones_refused() -> None:
    available = Available(("cosine", "itm"), CHOSEN, itm_k=4)
    stages, notes = plan_stages("smr, csls+smr ,itm+galr,cosine", available)
    assert notes == (
        "csls+smr: its parameters were chosen on cosine scores, not on those that it re-ranks; "
        "`cmpagl evaluate --rerank csls+smr` chooses them on the right scores",
    )
    assert stages == (
        Stage("cosine", "cosine"),
        Stage("cosine+smr", "cosine", ("smr",)),
        Stage("csls+smr", "cosine", ("csls", "smr")),
        Stage("itm+galr", "itm", ("galr",)),
    )
    assert [stage.name for stage in plan_stages("none", available)[0]] == ["cosine", "itm"]
    only_itm = plan_stages("default", Available(("itm",), ChosenParams({"itm@0": RerankParams(GAMMAS)}), 0))[0]
    assert [stage.name for stage in only_itm] == ["itm", "itm+smr"]
    with pytest.raises(UsageError, match="'mrs' is not a re-ranking"):
        plan_stages("mrs", available)
    with pytest.raises(UsageError, match="there are no itm scores here; there is cosine"):
        plan_stages("itm", Available(("cosine",), CHOSEN))
    with pytest.raises(UsageError, match=r"'csls\+smr': its parameters were never chosen"):
        plan_stages("csls+smr", Available(("cosine",), ChosenParams()))
    assert [stage.name for stage in plan_stages("default", replace(available, smr=False))[0]] == ["cosine", "itm"]


def test_a_run_shows_its_four_stages(run: Run, tiny_prepared: Path) -> None:
    add_params(run, ChosenParams(), CHOSEN, Silent())
    split = open_prepared(tiny_prepared).split("test")
    report = of_run(run, split)
    assert [row.stage for row in report.rows] == ["cosine", "cosine+smr", "itm", "itm+smr"]
    assert [steps[0].chosen_on for steps in report.stamp.rerank.values()] == ["cosine", "cosine"]
    assert [text.partition(",")[0] for text in report.notes] == ["itm+smr: its parameters were chosen on cosine scores"]
    assert report.stamp.itm_k == run.recipe.evaluate.itm_k
    assert report.stamp.split_sha256 == split.sha256
    assert report.stamp.model_sha256 == run.info.weights_sha256
    no_itm = of_run(run, split, replace(QUICK, itm_k=0))
    assert [row.stage for row in no_itm.rows] == ["cosine", "cosine+smr"]
    assert no_itm.rows[0] == report.rows[0]


def test_a_split_that_the_run_was_chosen_on_is_said_to_flatter(run: Run, split: DataSplit) -> None:
    selection = open_prepared(Path(run.info.dataset_root)).split("val")
    report = of_run(run, selection, QUICK)
    assert "tiny was chosen on this split, so these recalls are biased upwards" in report.notes
    assert report.stamp.overlap is not None
    assert (report.stamp.overlap.images, report.stamp.overlap.chosen_on) == (0, 2)
    notes = of_run(run, split, QUICK).notes  # all splits
    assert "tiny was chosen on 2 of these 12 images, so these recalls are biased upwards" in notes
    assert "trained on tiny, which shares 6 of 12 images with the test set" in notes


def test_without_pre_alignment_the_ranking_comes_from_itm(run: Run, tiny_prepared: Path) -> None:
    split = open_prepared(tiny_prepared).split("test")
    recipe = override_recipe(run.recipe, ["losses.pre_alignment=false"])
    scorer = RunScorer(SplitEncoder(replace(run, recipe=recipe)))
    report = run_scores(scorer, EvalSplit(split)).report(QUICK)
    assert [row.stage for row in report.rows] == ["itm"]
    assert report.stamp.itm_k == 0


def test_features_are_evaluated_like_the_run_they_came_from(run: Run, split: DataSplit) -> None:
    features = SplitEncoder(run).features(split)
    of_features = feature_scores(features).report(QUICK)
    from_run = of_run(run, split, replace(QUICK, rerank="none", itm_k=0))
    assert of_features.rows[0] == from_run.rows[0]
    assert of_features.stamp.split_sha256 == from_run.stamp.split_sha256
    nothing = replace(
        features, text_features=features.text_features[:0], text_image=features.text_image[:0], captions=()
    )
    with pytest.raises(DataError, match="has no captions"):
        feature_scores(nothing)


def test_a_report_comes_back_from_disk_as_it_was(split: DataSplit, tmp_path: Path) -> None:
    report = of_scores(some_scores(split), split, replace(QUICK, rerank="csls"))
    path = report_path(tmp_path, "test", "rsitr")
    assert path == tmp_path / "evaluations" / "test-rsitr.json"
    save_report(report, path)
    back = load_report(path)
    assert (back.stamp, back.rows, back.notes) == (report.stamp, report.rows, report.notes)
    for stage in ("cosine", "csls"):
        assert (back.queries.per_image(stage).hits == report.queries.per_image(stage).hits).all()
    first = path.with_suffix(".npz").read_bytes()
    save_report(report, path)
    assert path.with_suffix(".npz").read_bytes() == first
    assert back.row("csls") is back.rows[1]
    with pytest.raises(DataError, match="there is no stage 'smr'; there is cosine, csls"):
        back.row("smr")
    with pytest.raises(DataError, match="there is no stage 'smr'"):
        back.queries.per_image("smr")


def test_broken_reports_are_refused_in_a_sentence(split: DataSplit, tmp_path: Path) -> None:
    path = report_path(tmp_path, "test", "rsitr")
    save_report(of_scores(some_scores(split), split, QUICK), path)
    arrays, content = path.with_suffix(".npz"), json.loads(path.read_text())
    whole = arrays.read_bytes()
    with np.load(arrays) as file:
        kept = dict(file)
    for change in ({"caption_image": kept["caption_image"] + 99}, {"cosine.i2t_hits": kept["cosine.t2i_hits"]}):
        np.savez(arrays, **{**kept, **change})
        path.write_text(json.dumps({**content, "arrays_sha256": sha256_file(arrays)}))
        with pytest.raises(DataError, match="evaluate again"):
            load_report(path)
    for damage in (b"no archive", whole[:200]):
        arrays.write_bytes(damage)
        path.write_text(json.dumps({**content, "arrays_sha256": sha256_file(arrays)}))
        with pytest.raises(DataError, match="cannot be read"):
            load_report(path)
    arrays.unlink()
    with pytest.raises(DataError, match=r"test-rsitr.npz is missing"):
        load_report(path)
    path.write_text(json.dumps({**content, "rows": [{"stage": 3}]}))
    with pytest.raises(DataError, match=r"test-rsitr.json: 0\.stage"):
        load_report(path)
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DataError, match="format_version is 99, this cmpagl reads 2"):
        load_report(path)


def test_two_evaluations_in_one_pair_of_files_are_refused(
    split: DataSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = report_path(tmp_path, "test", "rsitr")
    save_report(of_scores(some_scores(split), split, QUICK), path)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(result, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_report(of_scores(some_scores(split, seed=1), split, QUICK), path)
    with pytest.raises(
        MismatchError, match=r"test-rsitr\.json and test-rsitr\.npz beside it belong to two different evaluations"
    ):
        load_report(path)


def test_files_that_are_no_matrix_are_refused_in_a_sentence(split: DataSplit, tmp_path: Path) -> None:
    path = tmp_path / "s.npy"
    with pytest.raises(DataError, match=r"s\.npy does not exist"):
        open_scores(path)
    np.save(path, np.array([[1, None]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"s\.npy is not a \.npy file of plain numbers"):
        open_scores(path)
    path.write_bytes(b"\x93NUMPY\x01\x00garbage")
    with pytest.raises(DataError, match=r"is not a \.npy file of plain numbers"):
        open_scores(path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match=r"has float64 of shape \(3,\), not a matrix of numbers"):
        open_scores(path)
    np.save(path, np.array([["a", "b"]]))
    with pytest.raises(DataError, match="not a matrix of numbers"):
        open_scores(path)
    np.savez(tmp_path / "s.npz", a=np.zeros((2, 2)))
    with pytest.raises(DataError, match="archive of several arrays"):
        open_scores(tmp_path / "s.npz")
    np.save(path, np.zeros((len(split.captions), len(split))))
    with pytest.raises(MismatchError, match=r"is 24 x 12 \(it looks transposed\), but the all split of tiny has 12"):
        matrix_scores(open_scores(path), EvalSplit(split))


def test_parameters_are_chosen_on_what_they_re_rank_and_kept_beside_the_run(
    run: Run, tmp_path: Path, tiny_prepared: Path
) -> None:
    session, scorer, before = session_in(tmp_path), scorer_of(run), (run.root / "run.json").read_bytes()
    assert read_params(run) == ChosenParams(split_sha256=run.info.selection_sha256)
    choice, params = tune_run(session, run, TuneRequest(gammas=(0.0, 1.0)))
    assert read_params(run).by_scores == {"cosine": params}
    assert (params.smr, params.smr_mr) == (choice.gammas, choice.mr)
    found = params_for(session.workspace, scorer, "csls+smr,itm+smr,sinkhorn", 3)
    assert read_params(run) == found
    assert list(found.by_scores) == ["cosine", "cosine+csls", "itm@3"]
    assert found.of("cosine") == params
    assert params_for(session.workspace, scorer, "default") == found
    itm, _ = tune_run(session, run, TuneRequest(base="itm", gammas=(0.0, 1.0)))
    assert read_params(run).of(f"itm@{run.recipe.evaluate.itm_k}").smr == itm.gammas
    assert (run.root / "run.json").read_bytes() == before
    test = open_prepared(tiny_prepared).split("test")
    with pytest.raises(GuardError, match="on the test split"):
        choose_missing(scorer, test, (), Available(("cosine",), ChosenParams()))


def test_parameters_of_another_split_or_model_are_not_used(run: Run, tmp_path: Path) -> None:
    add_params(run, ChosenParams(), CHOSEN, Silent())
    path, said = run.root / "rerank.json", Told()
    whole = json.loads(path.read_text())
    assert read_params(run, said).of("cosine").smr == GAMMAS
    for key in ("weights_sha256", "split_sha256", "images_sha256"):
        path.write_text(json.dumps({**whole, "chooser": {**whole["chooser"], key: "0" * 64}}))
        assert read_params(run, said).by_scores == {}
        assert "is not used: it was chosen for other weights or on another split" in said.messages.pop()
    fresh = params_for(Workspace(tmp_path), RunScorer(SplitEncoder(run)), "smr")
    assert read_params(run) == fresh
    for broken, words in (
        ({**whole, "by_scores": 3}, "by_scores.*delete it; `cmpagl tune smr` writes a new one"),
        ({**whole, "format_version": 9}, "is 9, this cmpagl reads 1; update cmpagl: a newer one wrote this"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=rf"rerank\.json: .*{words}"):
            read_params(run)


def test_nothing_is_chosen_on_what_the_run_was_trained_on_nor_kept_where_it_is_of_no_use(
    run: Run, tmp_path: Path
) -> None:
    session = session_in(tmp_path)
    with pytest.raises(GuardError, match="tiny was trained on 6 of its 6 images; choose on the run's selection split"):
        tune_run(session, run, TuneRequest("train"))
    rewrite_info(run.root, selection_sha256="0" * 64)
    with pytest.raises(MismatchError, match="prepared again"):
        tune_run(session, open_run(run.root), TuneRequest("val"))


def test_the_data_set_must_be_the_one_of_the_run(run: Run, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for key in ("manifest_sha256", "train_sha256", "selection_sha256"):
        rewrite_info(run.root, **{key: "0" * 64})
        changed = open_run(run.root)
        with pytest.raises(MismatchError, match="was prepared again with other content since tiny was trained"):
            open_tested(workspace, changed, None, "test")
        named = open_tested(workspace, changed, run.info.dataset_root, "test")
        assert named.other_dataset == "tiny"
        with pytest.raises(DataError, match="tiny has no selection split in tiny"):
            open_tested(workspace, changed, run.info.dataset_root, "selection")
        rewrite_info(run.root, **{key: getattr(run.info, key)})
    gone = replace(run, info=replace(run.info, dataset_root=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="the data set tiny that tiny was trained on is not at"):
        open_tested(workspace, gone, None, "test")


def test_training_images_in_another_data_set_are_found_though_the_runs_own_is_gone(run: Run, tmp_path: Path) -> None:
    gone = replace(run, info=replace(run.info, dataset_root=str(tmp_path / "nowhere"), dataset="lost"))
    train = open_prepared(Path(run.info.dataset_root)).split("train")
    report = of_run(gone, train.subset([0, 1, 2]), replace(QUICK, rerank="none", itm_k=0))
    assert report.stamp.overlap is not None
    assert (report.stamp.overlap.images, report.stamp.overlap.captions) == (3, 6)


def test_recalls_of_groups_make_up_the_whole(split: DataSplit) -> None:
    report = of_scores(some_scores(split), split, QUICK)
    groups = by_scene(report.queries, "cosine", split.scenes)
    assert [group.group for group in groups] == ["north", "south"]
    assert sum(group.captions for group in groups) == len(split.captions)
    assert np.average(
        [group.t2i.r5 for group in groups if group.t2i], weights=[group.captions for group in groups]
    ) == pytest.approx(report.first.t2i.r5)
    lengths = by_length(report.queries, "cosine", split.captions)
    assert [group.group for group in lengths] == ["1-5 words", "6-8 words"]
    assert [(group.i2t, group.images, group.mr) for group in lengths] == [(None, 0, None)] * 2
    assert np.average(
        [group.t2i.r1 for group in lengths if group.t2i], weights=[group.captions for group in lengths]
    ) == pytest.approx(report.first.t2i.r1)
    with pytest.raises(DataError, match="no image of this split has a scene class"):
        by_scene(report.queries, "cosine", [""] * len(split))


def test_keeping_an_evaluation_touches_nothing_else_of_a_run(run: Run) -> None:
    before = {path.name: path.read_bytes() for path in run.root.iterdir() if path.is_file()}
    split = open_prepared(Path(run.info.dataset_root)).split("test")
    report = of_run(run, split, replace(QUICK, rerank="none", itm_k=0))
    save_report(report, report_path(run.root, "test", "rsitr"))
    assert {path.name: path.read_bytes() for path in run.root.iterdir() if path.is_file()} == before


def test_ties_of_one_recall_alone_are_flagged_too() -> None:
    still = Spans({"r1": (5.0, 5.0), "r5": (5.0, 5.0), "r10": (5.0, 5.0)}, {"r1": (5.0, 5.0)}, (5.0, 5.0))
    row = a_row(still)
    assert (row.ties_matter, row.ties) == (False, "")
    one = replace(still, i2t={**still.i2t, "r5": (4.9, 5.3)}, mr=(5.0, 5.07))
    assert (a_row(one).ties_matter, a_row(one).ties) == (True, "i2t R@5 4.90 to 5.30")
    both = replace(one, mr=(4.0, 6.0))
    assert a_row(both).ties == "mR 4.00 to 6.00"


def a_row(bounds: Spans) -> ReportRow:
    recalls, ranks = Recalls(5.0, 5.0, 5.0), RankMetrics(1.0, 1.0, 1.0, 1.0)
    return ReportRow("cosine", recalls, recalls, 5.0, bounds, bounds, ranks, ranks, {"i2t": 1, "t2i": 1})
