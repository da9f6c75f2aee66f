"""Variants are what their names say, trainings are shared and found again, and the table's numbers are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

from cmpagl_core.ablation import trials
from cmpagl_core.ablation.figure import draw_deltas
from cmpagl_core.ablation.setting import start_study
from cmpagl_core.ablation.study import forecast, run_study
from cmpagl_core.ablation.table import AblationTable
from cmpagl_core.ablation.trials import StudySetting, scored
from cmpagl_core.ablation.variants import (
    STUDIES,
    SWITCHES,
    Variant,
    full_factorial,
    left_out,
    one_at_a_time,
    switches_of,
)
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.errors import DataError, InterruptedByUserError, UsageError
from cmpagl_core.evaluation.intervals import compare
from cmpagl_core.models.summary import image_encoder_size
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe, parse_recipe
from cmpagl_core.runs import Run
from cmpagl_core.training import loop
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
Cmpagl = Callable[..., Result]

QUICK_RECIPE = """
data: {image_size_px: 32, max_caption_tokens: 12}
image_encoder: {size: custom, width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 2}
text_encoder: {size: tiny}
losses: {embed_dim: 16, mlm: 0.0}
optim: {lr: 2.0e-3}
train: {epochs: 1, batch_size: 6, precision: fp32}
evaluate: {itm_k: 2, smr_gammas: [0.0, 1.0]}
"""


@pytest.fixture
def recipe() -> Recipe:
    return parse_recipe(QUICK_RECIPE, "quick")


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib takes as long as a tiny training."""
    monkeypatch.setattr(loop, "draw_curves", lambda root, progress: None)


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text("# For tests.\n" + QUICK_RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def setting(tiny_prepared: Path, tmp_path: Path) -> StudySetting:
    return StudySetting(Workspace(tmp_path), open_prepared(tiny_prepared), "test", tmp_path / "results", CPU, Silent())


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names and seeds of what is really trained."""
    done: list[str] = []
    fit = trials.fit

    def counted(recipe: Recipe, *arguments: Any, **options: Any) -> Run:
        done.append(f"{options['recipe_name']} {recipe.train.seed}")
        return fit(recipe, *arguments, **options)

    monkeypatch.setattr(trials, "fit", counted)
    return done


def named(variants: tuple[Variant, ...]) -> list[str]:
    return [variant.name for variant in variants]


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_every_switch_makes_a_valid_variant_of_the_full_recipe(name: str) -> None:
    small = [] if "same" not in name else ["data.image_size_px=112"]  # counting operations takes a while
    variants = one_at_a_time(override_recipe(Recipe(), small), [SWITCHES[name]])
    same = {"triplet-intra", "triplet-sum", "smr-multiply"}  # what the default recipe has already
    assert len(variants) == (1 if name in same else 2)
    assert all(isinstance(variant.stage(None), str) for variant in variants)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("no-global-window", "image_encoder.global_window", False),
        ("global-window-source-avgpool", "image_encoder.global_window_source", "avgpool"),
        ("global-window-source-random", "image_encoder.global_window_source", "random"),
        ("no-shifts", "image_encoder.shifted_windows", False),
        ("global-query-global", "image_encoder.global_query", "global"),
        ("branches-parallel", "image_encoder.branches", "parallel"),
        ("no-pre-alignment", "losses.pre_alignment", False),
        ("no-itc", "losses.itc", 0.0),
        ("no-triplet", "losses.triplet", "none"),
        ("triplet-plain", "losses.triplet", "plain"),
        ("no-itm", "losses.itm", 0.0),
        ("itm-negatives-any", "losses.itm_hardness", 0.0),
        ("no-mlm", "losses.mlm", 0.0),
        ("no-smr", "evaluate.smr", False),
    ],
)
def test_a_switch_changes_its_field_and_no_other(name: str, path: str, value: object) -> None:
    before, after = Recipe().model_dump(), one_at_a_time(Recipe(), [SWITCHES[name]])[1].recipe.model_dump()
    part, field = path.split(".")
    assert after[part].pop(field) == value
    before[part].pop(field)
    assert after == before


@pytest.mark.parametrize("measure", ["flops", "parameters"])
def test_plain_swin_is_widened_to_what_the_global_window_costs(measure: str) -> None:
    recipe = override_recipe(Recipe(), [f"image_encoder.{field}" for field in (
        "size=custom", "width=32", "depths=[1, 1, 2, 1]", "num_heads=[1, 2, 4, 8]", "window_size=3")]
        + ["data.image_size_px=96"])  # fmt: skip
    (_, variant) = one_at_a_time(recipe, [SWITCHES[f"no-global-window-same-{measure}"]])
    sizes = [getattr(image_encoder_size(one.image_encoder, 96), measure) for one in (recipe, variant.recipe)]
    assert not variant.recipe.image_encoder.global_window
    assert variant.recipe.image_encoder.depths == recipe.image_encoder.depths
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)


def test_plain_swin_behind_a_backbone_is_not_widened() -> None:
    behind = override_recipe(Recipe(), ["image_encoder.backbone=resnet18", "image_encoder.size=custom",
                                        "image_encoder.depths=[0, 0, 2, 2]"])  # fmt: skip
    assert named(one_at_a_time(behind, switches_of(studies=["global-window"]))) == ["baseline", "no-global-window"]


def test_a_text_split_sets_the_layers_of_the_text_half() -> None:
    variant = one_at_a_time(Recipe(), switches_of(splits=[4]))[1]
    assert (variant.name, variant.recipe.text_encoder.layers) == ("text-split-4", 4)


def test_without_itm_and_mlm_the_fusion_half_goes_and_the_name_says_so(recipe: Recipe) -> None:
    variant = one_at_a_time(recipe, [SWITCHES["no-itm"]])[1]
    assert variant.name == "no-itm (no fusion half)"
    assert not variant.recipe.fusion_encoder.enabled
    assert variant.stage(None) == "cosine+smr"


def test_a_switch_that_leaves_nothing_to_rank_by_is_refused(recipe: Recipe) -> None:
    cosine_only = override_recipe(recipe, ["losses.itm=0.0", "fusion_encoder.enabled=false"])
    with pytest.raises(UsageError, match="no-pre-alignment makes the recipe invalid"):
        one_at_a_time(cosine_only, [SWITCHES["no-pre-alignment"]])


def test_a_switch_that_changes_nothing_is_left_out_and_named(recipe: Recipe) -> None:
    switches = switches_of(["no-mlm", "no-itc"])
    variants = one_at_a_time(recipe, switches)
    assert named(variants) == ["baseline", "no-itc"]
    assert left_out(switches, variants) == ["no-mlm"]


@pytest.mark.parametrize(("negatives", "other"), [("sum", "triplet-hardest"), ("hardest", "triplet-sum")])
def test_the_triplet_study_holds_every_metric_loss_whatever_the_baselines_negatives(negatives: str, other: str) -> None:
    baseline = override_recipe(Recipe(), [f"losses.triplet_negatives={negatives}"])
    variants = one_at_a_time(baseline, switches_of(studies=["triplet"]))
    asked = {
        variant.name: (variant.recipe.losses.triplet, variant.recipe.losses.triplet_negatives) for variant in variants
    }
    assert asked == {
        "baseline": ("intra", negatives),
        "no-triplet": ("none", negatives),
        "triplet-plain": ("plain", negatives),
        other: ("intra", other.removeprefix("triplet-")),
        "triplet-circle": ("circle", negatives),
        "triplet-supcon": ("supcon", negatives),
    }


def test_studies_hold_only_switches_that_exist() -> None:
    assert {name for names in STUDIES.values() for name in names} <= set(SWITCHES)
    assert {switch.name for switch in switches_of(studies=["all"])} == {n for s in STUDIES.values() for n in s}


@pytest.mark.parametrize(
    ("names", "studies", "said"),
    [([], [], "no switch is given"), (["no-gswin"], [], "there is no switch"), ([], ["loss"], "there is no study")],
)
def test_unknown_switches_are_refused(names: list[str], studies: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        switches_of(names, studies)


def test_a_full_factorial_has_every_combination_once_and_none_that_cannot_be(recipe: Recipe) -> None:
    switches = switches_of(["no-itc", "no-triplet", "triplet-plain", "no-global-window"])
    variants = full_factorial(recipe, switches)
    assert len(variants) == 2 * 3 * 2
    assert len({variant.recipe.sha256() for variant in variants}) == len(variants)
    assert "no-itc+no-triplet (no pre-alignment)" in named(variants)
    without_window = full_factorial(recipe, switches_of(["no-global-window", "global-window-source-avgpool"]))
    assert len(without_window) == 3  # no window has no source


def test_too_many_combinations_are_refused(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="combinations are more than"):
        full_factorial(recipe, switches_of(studies=["all"]))


def test_a_study_trains_each_variant_once_and_shares_what_differs_in_re_ranking_alone(
    recipe: Recipe, setting: StudySetting, trainings: list[str]
) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-global-window", "no-smr", "csls", "smr-add"]))
    plan = forecast(variants, (0, 1), setting)
    assert (plan.trainings, plan.total_s) == (4, None)
    assert forecast(variants, (0, 1), setting, lambda: 2.5).total_s == 10.0
    table = run_study(variants, (0, 1), setting)
    assert sorted(trainings) == ["baseline 0", "baseline 1", "no-global-window 0", "no-global-window 1"]
    stages = {row.variant: row.stage for row in table.rows}
    assert stages == {
        "baseline": "itm+smr", "no-global-window": "itm+smr", "no-smr": "itm", "csls": "itm+csls", "smr-add": "itm+smr",
    }  # fmt: skip
    assert not (setting.workspace.root / "runs" / "run.json").exists()
    with pytest.raises(DataError):
        setting.workspace.find("runs")  # variants never become the newest run
    check_numbers(table, variants, setting)
    trainings.clear()
    again = run_study(variants, (0, 1), setting)
    assert trainings == []
    assert again == table
    assert {step.todo for step in forecast(variants, (0, 1), setting).steps} == {"nothing"}


def check_numbers(table: AblationTable, variants: tuple[Variant, ...], setting: StudySetting) -> None:
    """Means, spread and differences by hand from the kept results."""
    kept = [json.loads(path.read_text()) for path in sorted(setting.results.glob("*.trial.json"))]
    reports = {(facts["name"], facts["seed"]): facts for facts in kept}
    assert len(reports) == 6  # baseline, no-global-window, smr-add, with two seeds each
    per_seed = {}
    for row in table.rows[:2]:
        paths = sorted(setting.results.glob(f"{row.variant}-s*.trial.json"))
        mrs = []
        for path in paths:
            report = json.loads(path.with_name(path.name.replace(".trial.json", ".json")).read_text())
            mrs.append(next(one["mr"] for one in report["rows"] if one["stage"] == row.stage))
        per_seed[row.variant] = mrs
        assert row.mr == pytest.approx(np.mean(mrs))
        assert row.mr_std == pytest.approx(np.std(mrs, ddof=1))
    expected = np.mean(per_seed["no-global-window"]) - np.mean(per_seed["baseline"])
    assert table.rows[1].delta == pytest.approx(expected)
    assert all(0 < (row.p_value or 0) <= (row.p_holm or 0) <= 1 for row in table.rows[1:])
    assert table.rows[0].delta is None


def test_the_newest_run_is_the_baseline_and_is_not_trained_again(
    cmpagl: Cmpagl, tiny_prepared: Path, recipe_file: Path, tmp_path: Path, trainings: list[str]
) -> None:
    prepared = open_prepared(tiny_prepared)
    recipe = parse_recipe(QUICK_RECIPE, "quick")
    trials.fit(recipe, prepared, tmp_path / "runs" / "mine", Silent(), CPU, recipe_name="mine")
    trainings.clear()
    result = cmpagl("ablate", "--no-global-window", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert trainings == ["no-global-window 0"]
    rows = json.loads(result.stdout)["rows"]
    assert [row["variant"] for row in rows] == ["baseline", "no-global-window"]
    assert {"variant", "seeds", "mr", "mr_std", "delta", "p_value"} <= set(rows[0])
    assert "1 trainings of about" in result.stderr
    again = cmpagl("ablate", "--no-itc", "--dry-run", "--format", "json")
    assert json.loads(again.stdout)["steps"] == [
        {"variant": "baseline", "seed": 0, "todo": "nothing"},
        {"variant": "no-itc", "seed": 0, "todo": "train"},
    ]


def test_an_interrupted_study_goes_on_where_it_stopped(
    recipe: Recipe, setting: StudySetting, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-itc", "no-triplet"]))
    fit = trials.fit

    def stopped_at_the_second(recipe: Recipe, *arguments: Any, **options: Any) -> Run:
        if options["recipe_name"] == "no-itc":
            raise KeyboardInterrupt
        return fit(recipe, *arguments, **options)

    monkeypatch.setattr(trials, "fit", stopped_at_the_second)
    with pytest.raises(InterruptedByUserError, match=r"stopped in no-itc with seed 0.*run the same command again"):
        run_study(variants, (0,), setting)
    monkeypatch.setattr(trials, "fit", fit)
    trainings.clear()
    run_study(variants, (0,), setting)
    assert trainings == ["no-itc 0", "no-triplet 0"]


def test_a_broken_result_is_made_again(recipe: Recipe, setting: StudySetting, trainings: list[str]) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-smr"]))
    table = run_study(variants, (0,), setting)
    state = next((setting.workspace.root / trials.VARIANT_RUNS).iterdir()) / "resume" / "state.safetensors"
    state.parent.mkdir()
    state.touch()  # as a kill does between the run's marker and the end of its state
    for path in setting.results.glob("*.trial.json"):
        path.write_text("{}")
    assert run_study(variants, (0,), setting) == table
    assert trainings == ["baseline 0"]
    assert not state.parent.exists()


def test_locks_of_a_study_that_was_killed_when_it_was_done_are_removed(recipe: Recipe, setting: StudySetting) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-smr"]))
    table = run_study(variants, (0,), setting)
    (run_folder,) = (setting.workspace.root / trials.VARIANT_RUNS).glob("baseline*")
    (result,) = setting.results.glob("*.trial.json")
    key = json.loads(result.read_text())["training_key"]
    locks = [run_folder.parent / f".{run_folder.name}.lock", setting.results / f".training-{key[:8]}.lock"]
    for lock in locks:
        lock.touch()
    assert run_study(variants, (0,), setting) == table
    assert not any(lock.exists() for lock in locks)


def test_a_result_whose_files_are_of_two_trials_is_made_again(
    recipe: Recipe, setting: StudySetting, trainings: list[str]
) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-smr"]))
    table = run_study(variants, (0,), setting)
    (facts,) = setting.results.glob("*.trial.json")
    report = facts.with_name(facts.name.replace(".trial.json", ".json"))
    report.write_text(report.read_text().replace('"notes"', '"notes" '))
    assert forecast(variants, (0,), setting).evaluations == 1
    assert run_study(variants, (0,), setting) == table
    assert trainings == ["baseline 0"]


def test_a_result_of_another_device_or_precision_is_another_result(recipe: Recipe, setting: StudySetting) -> None:
    run_study(one_at_a_time(recipe, switches_of(["no-smr"])), (0,), setting)
    elsewhere = replace(setting, device=torch.device("meta"))
    plan = forecast(one_at_a_time(recipe, switches_of(["no-smr"])), (0,), elsewhere)
    assert (plan.trainings, plan.evaluations) == (1, 1)


def test_results_alone_are_enough_elsewhere(
    recipe: Recipe, setting: StudySetting, tmp_path: Path, trainings: list[str]
) -> None:
    variants = one_at_a_time(recipe, switches_of(["no-smr"]))
    table = run_study(variants, (0,), setting)
    elsewhere = StudySetting(Workspace(tmp_path / "new"), setting.prepared, "test", setting.results, CPU, Silent())
    assert run_study(variants, (0,), elsewhere) == table
    assert trainings == ["baseline 0"]


def test_a_dry_run_measures_what_is_not_known_yet(cmpagl: Cmpagl, tiny_prepared: Path, recipe_file: Path) -> None:
    result = cmpagl("ablate", recipe_file, "--no-itc", "--data", tiny_prepared, "--dry-run", "--format", "json")
    assert result.exit_code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["trainings"], plan["evaluations"]) == (2, 2)
    assert 0 < plan["total_s"] == 2 * plan["seconds_per_training"]
    assert "2 trainings of about" in result.stderr


def test_choosing_on_the_test_split_is_refused(cmpagl: Cmpagl, tiny_prepared: Path, recipe_file: Path) -> None:
    result = cmpagl(
        "ablate", recipe_file, "--no-itc", "--data", tiny_prepared, "--set", "data.selection.split=test"
    )  # fmt: skip
    assert result.exit_code == 4
    assert "test" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--no-itc"], 3, "nothing in"),
        (["--seeds", "0,x", "--no-itc"], 2, "is not a list such as 0,1,2"),
        ([], 2, "no switch is given"),
    ],
)
def test_a_wrong_call_is_said(cmpagl: Cmpagl, arguments: list[str], code: int, said: str) -> None:
    result = cmpagl("ablate", *arguments)
    assert result.exit_code == code
    assert said in result.stderr


@pytest.mark.parametrize("format", ["table", "csv", "markdown", "latex", "html"])
def test_every_format_shows_every_variant(
    cmpagl: Cmpagl, tiny_prepared: Path, recipe_file: Path, format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = tmp_path_factory.getbasetemp() / "ablation-formats"  # trained once for all formats
    result = cmpagl(
        "ablate", recipe_file, "--no-global-window", "--no-smr", "--data", tiny_prepared, "--results", kept,
        "--format", format, "--out", "table.txt", *(("--figure", "deltas.png") if format == "table" else ()),
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    text = Path("table.txt").read_text(encoding="utf-8")
    assert all(name in text for name in ("baseline", "no-global-window", "no-smr"))
    assert format != "table" or Path("deltas.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a figure must be \.png"):
        draw_deltas(AblationTable("x", "test", 1, 1, ()), tmp_path / "x.gif")


def test_start_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cmpagl train"):
        start_study(Workspace(tmp_path), None, (), None, "test", None, CPU, Silent())


def test_scored_shows_every_row(recipe: Recipe) -> None:
    assert scored(override_recipe(recipe, ["evaluate.smr=false"])) == recipe


def test_the_same_results_on_both_sides_are_no_difference(recipe: Recipe, setting: StudySetting) -> None:
    run_study(one_at_a_time(recipe, switches_of(["no-smr"])), (0,), setting)
    path = next(iter(setting.results.glob("*.trial.json")))
    report = trials.load_report(path.with_name(path.name.replace(".trial.json", ".json")))
    images = report.queries.per_image("cosine")
    assert all(found.p == 1.0 and found.delta == 0.0 for found in compare([images], [images]))
