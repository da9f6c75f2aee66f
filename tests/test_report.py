"""A report page holds its numbers, escapes what comes from outside, and reaches for nothing outside itself."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from cmpagl_core.ablation.table import AblationRow, AblationTable
from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.errors import DataError, GuardError, UsageError
from cmpagl_core.evaluation.evaluate import EvaluateOptions, ScoredModel, matrix_scores
from cmpagl_core.evaluation.recall import Recalls
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.report.ablation_page import render_ablation
from cmpagl_core.report.charts import Value, line_chart, row_chart, scale, ticks
from cmpagl_core.report.evidence import (
    Evidence,
    collect,
    gather,
    read_curves,
    recipe_differences,
    worst_images,
    worst_texts,
)
from cmpagl_core.report.runs_page import render_runs
from cmpagl_core.run_data import EvalSplit
from cmpagl_core.runs import Run, open_run
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace

HOSTILE = "<script>alert('\N{AIRPLANE}')</script> & \"quotes\" {{ 7 * 7 }}"
Cmpagl = Callable[..., Result]


class Page(HTMLParser):
    """Tags, their attributes and the text of a page; unbalanced tags are noted."""

    VOID = ("meta", "img", "line", "circle", "rect", "polyline")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_self_contained(html: str) -> Page:
    page = Page(html)
    assert page.unbalanced == []
    assert page.open == []
    assert "script" not in [tag for tag, _ in page.tags]
    assert "link" not in [tag for tag, _ in page.tags]
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action"):
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    assert not re.search(r"url\(|@import|https?://", html)
    return page


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    log = tmp_path / "runs" / "tiny" / "log.jsonl"
    log.write_text(
        '{"event": "epoch", "epoch": 1, "loss": 3.5}\n{"event": "validation", "epoch": 1, "mr": 10.0}\n'
        '{"event": "epoch", "epoch": 2, "loss": null}\n{"event": "validation", "epoch": 2, "mr": 20.0}\n'
        '{"event": "warning", "name": "collapsed", "sentence": "all features look alike"}\n'
    )
    return open_run(tmp_path / "runs" / "tiny")


@pytest.fixture
def split(tiny_prepared: Path) -> DataSplit:
    return open_prepared(tiny_prepared).split("all")


def evidence_of(run: Run, split: DataSplit, seed: int = 0, name: str = "tiny") -> Evidence:
    scores = np.random.default_rng(seed).random((len(split), len(split.captions)))
    report = matrix_scores(scores, EvalSplit(split, "manifest"), ScoredModel(name, "sha")).report(
        EvaluateOptions(samples=20)
    )
    return replace(gather(run, report, split, None), name=name)


def test_the_page_shows_every_recall_with_its_interval(run: Run, split: DataSplit) -> None:
    evidence = evidence_of(run, split)
    page = assert_self_contained(render_runs([evidence]))
    row = evidence.report.rows[0]
    shown = [row.i2t.r1, row.i2t.r5, row.i2t.r10, row.t2i.r1, row.t2i.r5, row.t2i.r10, row.mr]
    assert all(f"{value:.2f}" in page.text for value in shown)
    assert f"{row.ci95.mr[0]:.1f}–{row.ci95.mr[1]:.1f}" in page.text
    assert "all features look alike" in page.text
    assert f"{len(split)} images" in page.text


def test_scenes_and_worst_queries_are_of_the_plain_ranking_and_not_of_the_best_on_this_split(
    run: Run, split: DataSplit
) -> None:
    scores = np.random.default_rng(3).random((len(split), len(split.captions)))
    report = matrix_scores(scores, EvalSplit(split, "manifest"), ScoredModel("tiny", "sha")).report(
        EvaluateOptions(rerank="csls,galr", samples=5)
    )
    plain = replace(report, rows=report.rows[:1])
    assert report.best != report.first
    shown, expected = gather(run, report, split, None), gather(run, plain, split, None)
    assert (shown.scenes, shown.worst_texts) == (expected.scenes, expected.worst_texts)
    assert [row.stage for row in shown.scenes] == ["cosine"] * 2


def test_two_runs_stand_side_by_side_with_what_differs_in_their_recipes(run: Run, split: DataSplit) -> None:
    other = replace(run, recipe=override_recipe(run.recipe, ["optim.lr=9.0e-4"]))
    first, second = evidence_of(run, split, 0, "one"), evidence_of(other, split, 1, "two")
    page = assert_self_contained(render_runs([first, second]))
    assert "optim.lr" in page.text
    assert "0.0009" in page.text
    assert f"{first.report.first.mr:.2f}" in page.text
    assert f"{second.report.first.mr:.2f}" in page.text


def test_results_of_other_data_are_refused_unless_told_to_mix(run: Run, split: DataSplit) -> None:
    first = evidence_of(run, split, 0, "one")
    second = evidence_of(run, split.subset([0, 1, 2]), 0, "two")
    with pytest.raises(GuardError, match="results are not comparable"):
        render_runs([first, second])
    page = assert_self_contained(render_runs([first, second], mix=True))
    assert "shown side by side although split sha256" in page.text


def test_what_comes_from_outside_is_escaped(run: Run, split: DataSplit) -> None:
    hostile = replace(split, captions=(HOSTILE, *split.captions[1:]), scenes=(HOSTILE, *split.scenes[1:]))
    scores = np.zeros((len(split), len(split.captions)))
    scores[0, 0] = -1.0  # the hostile caption is the worst query
    report = matrix_scores(scores, EvalSplit(hostile, ""), ScoredModel(HOSTILE, "sha")).report(
        EvaluateOptions(samples=20)
    )
    report = replace(report, notes=(HOSTILE,))
    html = render_runs([replace(gather(run, report, hostile, None), name=HOSTILE)])
    page = assert_self_contained(html)
    assert HOSTILE in page.text
    assert "<script>" not in html


def test_a_missing_image_is_shown_as_missing(run: Run, split: DataSplit, tmp_path: Path) -> None:
    gone = replace(split, paths=tuple(tmp_path / "gone" / path.name for path in split.paths))
    page = assert_self_contained(render_runs([evidence_of(run, gone)]))
    assert "missing" in page.text


def test_images_are_inside_the_page(run: Run, split: DataSplit) -> None:
    page = assert_self_contained(render_runs([evidence_of(run, split)]))
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)


def test_no_run_is_refused() -> None:
    with pytest.raises(UsageError, match="no run"):
        render_runs([])


def test_an_evaluation_of_another_split_is_refused(run: Run, split: DataSplit) -> None:
    report = evidence_of(run, split).report
    with pytest.raises(DataError, match="evaluate again"):
        gather(run, report, split.subset([0, 1]), None)


def test_the_worst_texts_are_those_with_the_last_ranks_each_image_once(split: DataSplit) -> None:
    rank = np.arange(1.0, len(split.captions) + 1)
    worst = worst_texts(split, rank, None)
    assert worst[0].caption == split.captions[-1]
    assert len({query.own.image_id for query in worst}) == len(worst)
    assert [query.rank for query in worst] == sorted((query.rank for query in worst), reverse=True)


def test_an_image_without_captions_is_no_worst_query(split: DataSplit) -> None:
    rank = np.full(len(split), np.nan)
    rank[3] = 7.0
    assert [query.own.image_id for query in worst_images(split, rank, None)] == [split.image_ids[3]]


def test_a_kept_evaluation_is_used_and_a_stale_one_made_again(run: Run, tiny_prepared: Path, tmp_path: Path) -> None:
    session = Session(Workspace(tmp_path), Silent(), lambda: torch.device("cpu"))
    arguments = (session, run, str(tiny_prepared), "test", "rsitr", False)
    first = collect(*arguments)
    kept = next((run.root / "evaluations").glob("*.json"))
    written_at = kept.stat().st_mtime_ns
    assert collect(*arguments).report.first == first.report.first
    assert kept.stat().st_mtime_ns == written_at
    kept.write_text(kept.read_text().replace(run.info.weights_sha256, "0" * 64))
    assert collect(*arguments).report.first == first.report.first
    assert kept.stat().st_mtime_ns > written_at
    assert all(query.found for query in first.worst_texts)


def test_the_command_writes_the_page(cmpagl: Cmpagl, run: Run, tiny_prepared: Path) -> None:
    result = cmpagl("report", "tiny", "tiny", "--data", tiny_prepared, "--out", "page.html")
    assert result.exit_code == 0, result.stderr
    page = assert_self_contained(Path("page.html").read_text(encoding="utf-8"))
    assert "tiny (1)" in page.text
    assert cmpagl("report", "no-such-run").exit_code == 3


def test_a_broken_log_leaves_the_page_without_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "log.jsonl").mr == ()
    (tmp_path / "log.jsonl").write_text('{"event": "validation", "epoch": 1, "mr": 5}\nnot json\n')
    curves = read_curves(tmp_path / "log.jsonl")
    assert curves.mr == ((1.0, 5.0),)
    assert "log.jsonl:2" in curves.warnings[0]


def test_equal_recipes_do_not_differ(run: Run) -> None:
    assert recipe_differences([run.recipe, run.recipe]) == []
    other = override_recipe(run.recipe, ["train.seed=3"])
    assert recipe_differences([run.recipe, other]) == [("train.seed", ["0", "3"])]


def ablation_table(variant: str = "no-itc") -> AblationTable:
    recalls = Recalls(10.0, 20.0, 30.0)
    baseline = AblationRow(
        "baseline", "", "itm+smr", (0, 1), recalls, recalls, 20.0, 0.5, None, None, None, None, 1_000, 2.0
    )
    other = replace(
        baseline,
        variant=variant,
        claim="it helps",
        mr=18.0,
        delta=-2.0,
        delta_ci95=(-3.5, -0.5),
        p_value=0.01,
        p_holm=0.02,
    )
    return AblationTable("ucm", "test", 210, 1_050, (baseline, other), (HOSTILE,))


def test_an_ablation_page_shows_every_variant_with_its_difference() -> None:
    page = assert_self_contained(render_ablation(ablation_table(HOSTILE)))
    assert page.text.count(HOSTILE) >= 2
    assert "-2.00" in page.text
    assert "-3.50 – -0.50" in page.text
    assert "Holm 0.0200" in page.text


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.booleans())
def test_an_axis_holds_its_values_and_has_a_few_round_ticks(a: float, b: float, from_zero: bool) -> None:
    low, high, step = scale(min(a, b), max(a, b), from_zero)
    slack = 1e-6 * max(1.0, abs(a), abs(b))
    assert low <= min(a, b) + slack
    assert high >= max(a, b) - slack
    assert not from_zero or low <= 0 <= high
    marks = ticks(low, high, step)
    assert 2 <= len(marks) <= 9
    assert len({label for _, label in marks}) == len(marks)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.floats(0, 100)), min_size=1, max_size=9))
def test_every_mark_lies_inside_its_chart_in_the_order_of_its_value(items: list[tuple[str, int, float]]) -> None:
    values = [Value(row, side, value, max(0.0, value - 5), value + 5) for row, side, value in items]
    chart = row_chart(values)
    for mark in chart.marks:
        assert chart.left - 1e-6 <= mark.low <= mark.x <= mark.high <= chart.right + 1e-6
        assert 0 <= mark.y <= chart.floor
    by_value = sorted(zip(values, chart.marks, strict=True), key=lambda pair: pair[0].value)
    assert [mark.x for _, mark in by_value] == sorted(mark.x for mark in chart.marks)


def test_a_curve_without_points_is_no_chart() -> None:
    assert line_chart("mR", [("one", ())], best=True) is None
    assert line_chart("mR", [("one", ((1.0, math.nan),))], best=True) is None
    alone = line_chart("loss", [("one", ((1.0, 5.0),)), ("two", ((1.0, 4.0), (2.0, 3.0)))], best=False)
    assert alone is not None
    assert [line.best_x is not None for line in alone.lines] == [True, False]
    chart = line_chart("mR", [("one", ((1.0, 5.0),)), ("two", ())], best=True)
    assert chart is not None
    assert chart.lines[0].best_x is not None
    assert chart.lines[1].points == ""
