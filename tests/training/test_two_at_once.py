"""Two processes at the same work: each comes out whole, or is told in one sentence who is at it."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.files import sha256_file
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.runs import open_run
from cmpagl_core.workspace import Workspace
from tests.training.scripts import run_script

SCRIPT = Path(__file__).parent / "two_at_once.py"
Stories = dict[str, Any]


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, squares: PreparedDataset, tiny_yaml: str, backbone_yaml: str
) -> Workspace:
    root = tmp_path_factory.mktemp("two")
    (root / "data").mkdir()
    (root / "data" / "squares").symlink_to(squares.root)
    (root / "tiny.yaml").write_text(tiny_yaml)
    (root / "backbone.yaml").write_text(backbone_yaml)
    return Workspace(root)


@pytest.fixture(scope="module")
def stories(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Stories:
    told: Stories = json.loads(run_script(SCRIPT, tmp_path_factory.mktemp("said") / "two", workspace.root))
    return told


def refused(path: Path, instead: str) -> re.Pattern[str]:
    who = rf"process \d+ on {re.escape(socket.gethostname())} \(.*, since [^)]*\)"
    return re.compile(rf"1: {re.escape(str(path))} is being written by {who}; wait until it has ended, or {instead}")


def test_two_trainings_started_at_once_become_two_runs(stories: Stories, workspace: Workspace) -> None:
    assert (stories["trainings"]["first"], stories["trainings"]["second"]) == ("tiny", "tiny-2")
    runs = [open_run(workspace.root / "runs" / name) for name in ("tiny", "tiny-2")]
    assert [run.info.seed for run in runs] == [0, 1]
    assert [sha256_file(run.weights_path) for run in runs] == [run.info.weights_sha256 for run in runs]


def test_a_second_training_of_one_name_is_refused(stories: Stories, workspace: Workspace) -> None:
    assert stories["one_name"]["first"] == "mine"
    sentence = refused(workspace.root / "runs" / "mine", "choose another --name")
    assert sentence.fullmatch(stories["one_name"]["second"])


def test_a_second_resume_of_one_run_is_refused(stories: Stories, workspace: Workspace) -> None:
    assert stories["resumed"]["first"] == "stopped"
    sentence = refused(workspace.root / "runs" / "stopped", "name another training with --name")
    assert sentence.fullmatch(stories["resumed"]["second"])


def test_two_trainings_make_the_maps_of_their_backbone_once(stories: Stories) -> None:
    story = stories["backbone"]
    assert (story["first"], story["second"]) == ("backbone", "backbone-2")
    assert any(said.startswith("waiting: ") for said in story["second_said"])
    assert "cache backbone maps" in story["first_said"]
    assert "cache backbone maps" not in story["second_said"]


def test_two_studies_train_a_variant_once_and_share_its_result(stories: Stories, workspace: Workspace) -> None:
    story = stories["studies"]
    assert story["first"] == story["second"]
    assert "train" in story["first_said"]
    assert "train" not in story["second_said"]
    assert sum(said.startswith("waiting: ") for said in story["second_said"]) == 1
    assert len(list((workspace.root / "runs" / "ablations").iterdir())) == 1


def test_two_evaluations_that_choose_for_one_run_keep_both_choices(stories: Stories, workspace: Workspace) -> None:
    assert (stories["evaluations"]["first"], stories["evaluations"]["second"]) == ("sinkhorn", "dual_softmax")
    kept = read_params(open_run(workspace.root / "runs" / "tiny")).of("cosine")
    assert kept.smr is not None
    assert kept.sinkhorn is not None
    assert kept.dual_softmax is not None


def test_a_second_index_of_one_name_is_refused(stories: Stories, workspace: Workspace) -> None:
    story = stories["indexings"]
    assert story["first"] == str(len(open_prepared(workspace.root / "data" / "squares").images))
    assert refused(workspace.root / "indexes" / "mine", "choose another --name").fullmatch(story["second"])


def test_two_questions_without_an_index_make_one_and_share_it(stories: Stories, workspace: Workspace) -> None:
    story = stories["retrievals"]
    images = str(len(open_prepared(workspace.root / "data" / "squares").images))
    assert (story["first"], story["second"]) == (images, images)
    assert any(said.startswith("waiting: ") for said in story["second_said"])
    assert "encode images" not in story["second_said"]


def test_of_two_prepares_of_one_name_each_is_whole_or_refused(stories: Stories, workspace: Workspace) -> None:
    for story in stories["prepared"]:
        root = workspace.root / "data" / story["name"]
        ends = {story["first"], story["second"]}
        assert "True" in ends
        assert all(end == "True" or refused(root, "choose another --name").fullmatch(end) for end in ends)
        prepared = open_prepared(root)
        assert len(prepared.images) == len(list((root / "source" / "images").iterdir())) == 8
        assert prepared.manifest.complete


def test_nothing_is_left_behind(stories: Stories, workspace: Workspace) -> None:
    assert stories
    kept = (".cmpagl-stamp.json", ".selected")
    left = [path for path in workspace.root.rglob(".*") if path.name not in kept]
    assert left == []
