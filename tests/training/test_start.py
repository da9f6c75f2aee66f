"""Names, folders and resuming are what `cmpagl train` says they are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from cmpagl_cli.app import app
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.errors import BusyError, DataError, UsageError
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import open_run
from cmpagl_core.training import loop, resume, start
from cmpagl_core.training.journal import read_journal
from cmpagl_core.training.start import TrainRequest, new_run_folder, start_training
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")

Train = Callable[..., Result]


@pytest.fixture
def workspace(squares: PreparedDataset, tiny_yaml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """One with the data set and a recipe file tiny.yaml; curves are left out, as matplotlib is slow to import."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "squares").symlink_to(squares.root)
    (tmp_path / "tiny.yaml").write_text(tiny_yaml)
    monkeypatch.setattr(loop, "draw_curves", lambda root, progress: None)
    monkeypatch.setattr(loop, "STATE_EVERY_S", 0.0)
    return Workspace(tmp_path)


@pytest.fixture
def train(workspace: Workspace) -> Train:
    """`cmpagl train` with these arguments, in that workspace."""

    def call(*arguments: str) -> Result:
        shared = ["--workspace", str(workspace.root), "--threads", "1", "--device", "cpu"]
        return CliRunner().invoke(app, [*shared, "train", *arguments])

    return call


def stopped(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str, epochs: int = 1) -> None:
    """Begin a training that is interrupted after some epochs."""
    validate_epoch = loop.validate_epoch

    def interrupted(session: loop.Training) -> None:
        validate_epoch(session)
        if session.position.epoch == epochs:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate_epoch", interrupted)
        with pytest.raises(loop.InterruptedByUserError):
            start_training(TrainRequest(str(workspace.root / "tiny.yaml"), name=name), workspace, Silent(), CPU)


def test_training_twice_makes_a_second_run_and_overwrites_nothing(train: Train, workspace: Workspace) -> None:
    recipe = str(workspace.root / "tiny.yaml")
    first = train(recipe, "--set", "train.epochs=1", "--format", "json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    before = (workspace.root / "runs" / "tiny" / "model.safetensors").stat().st_mtime_ns
    second = train(recipe, "--set", "train.epochs=1", "--seed", "3", "--format", "json")
    assert json.loads(second.stdout)["run"] == "tiny-2"
    assert (workspace.root / "runs" / "tiny" / "model.safetensors").stat().st_mtime_ns == before
    run, other = (open_run(workspace.root / "runs" / name) for name in ("tiny", "tiny-2"))
    assert (told["run"], told["mr"], told["weights_sha256"]) == ("tiny", run.info.best.mr, run.info.weights_sha256)
    assert set(told["smr"]) == {"form", "gamma1", "gamma2", "mr"}
    assert (run.info.recipe_name, run.info.seed, other.info.seed) == ("tiny", 0, 3)
    assert run.recipe.data.dataset == "squares"
    assert "validation mR" in train(recipe, "--set", "train.epochs=1", "--name", "third").stdout


def test_a_name_that_is_taken_is_refused(workspace: Workspace) -> None:
    state = workspace.root / "runs" / "mine" / "resume" / "state.safetensors"
    state.parent.mkdir(parents=True)

    def claim(name: str = "mine") -> Path:
        with new_run_folder(workspace, name, "tiny") as root:
            return root

    assert claim() == workspace.root / "runs" / "mine"  # killed before its first state
    state.touch()
    with pytest.raises(UsageError, match=r"mine already exists; resume it with --resume, or choose another"):
        claim()
    (workspace.root / "runs" / "mine" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"mine already exists; choose another --name"):
        claim()
    assert not state.parent.exists()  # a process that was killed after writing run.json had left it
    with pytest.raises(UsageError, match="is not a valid name"):
        claim("../mine")


def test_a_name_is_claimed_before_anything_is_written(workspace: Workspace) -> None:
    with new_run_folder(workspace, None, "tiny") as first, new_run_folder(workspace, None, "tiny") as second:
        assert (first.name, second.name) == ("tiny", "tiny-2")
        refused = pytest.raises(BusyError, match=r"tiny-2 is being written by process .*, or choose another --name$")
        with refused, new_run_folder(workspace, "tiny-2", "tiny"):
            pass


def test_resume_goes_on_with_the_newest_unfinished_training_of_the_recipe(
    train: Train, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(workspace, monkeypatch, "older")
    time.sleep(0.02)
    stopped(workspace, monkeypatch, "newer")
    other = train("tiny-other", "--resume")
    assert (other.exit_code, "no unfinished training of tiny-other in" in other.stderr) == (3, True)
    resumed = train("tiny", "--resume", "--format", "json")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads(resumed.stdout)["run"] == "newer"
    assert "resuming newer after 3 steps, in epoch 2" in resumed.stderr
    assert json.loads(train("--resume", "--name", "older", "--format", "json").stdout)["run"] == "older"
    weights = {open_run(workspace.root / "runs" / name).info.weights_sha256 for name in ("older", "newer")}
    assert len(weights) == 1
    nothing = train("--resume")
    assert (nothing.exit_code, "there is no unfinished training in" in nothing.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ((), 2, "no recipe is given; `cmpagl recipe list` shows them; --resume needs none"),
        (("tiny.yamll",), 2, "there is no recipe 'tiny.yamll'"),
        (("{recipe}", "--set", "optim.lerning_rate=1"), 2, "unknown key 'optim.lerning_rate'"),
        (("{recipe}", "--set", "data.selection.split=test"), 4, "choosing models or gammas on the test split"),
        (("{recipe}", "--data", "nowhere"), 3, "no manifest.json under nowhere"),
        (("--resume", "--seed", "2"), 2, "--set and --seed cannot change a training that has started"),
        (("--resume", "--name", "nothing"), 3, "has no training to resume"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_sentence(
    train: Train, workspace: Workspace, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    result = train(*(argument.replace("{recipe}", str(workspace.root / "tiny.yaml")) for argument in arguments))
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert not (workspace.root / "runs").exists()


def test_imported_weights_are_told_and_listed_in_the_log(train: Train, workspace: Workspace) -> None:
    recipe = load_recipe(workspace.root / "tiny.yaml", ("image_encoder.global_window=false",))
    plain = GswinEncoder(recipe.image_encoder, recipe.data.image_size_px)
    head = {"head.fc.weight": torch.zeros(3, plain.width), "head.fc.bias": torch.zeros(3)}
    save_file(plain.state_dict() | head, workspace.root / "swin.safetensors")
    source = f"file:{workspace.root / 'swin.safetensors'}"
    settings = ("--set", f"image_encoder.weights={source}", "--set", "train.epochs=1")
    result = train(str(workspace.root / "tiny.yaml"), *settings)
    assert result.exit_code == 0, result.output
    assert "2 unused (head.fc.bias, head.fc.weight)" in " ".join(result.stderr.split())
    run = open_run(workspace.root / "runs" / "tiny")
    (told,) = [event for event in read_journal(run.log_path) if event["event"] == "weights"]
    assert told["source"] == source
    assert set(told["imported"]) == {f"image_encoder.{name}" for name in plain.state_dict()}
    assert told["left_over"] == sorted(head)
    encoder = {f"image_encoder.{name}" for name in run.load().model.image_encoder.state_dict()}
    assert set(told["new"]) == encoder - set(told["imported"])


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"encoder.layer.0.output.dense.weight": torch.zeros(2, 2)}, "has no patch_embed.proj.weight"),
        ({"patch_embed.proj.weight": torch.zeros(96, 3, 4, 4)}, "is (96, 3, 4, 4), but the recipe needs (8, 3, 4, 4)"),
        ({"layers.0.blocks.7.norm1.weight": torch.zeros(8)}, "has layers.0.blocks.7.norm1.weight, but the recipe's"),
    ],
)
def test_a_wrong_file_of_weights_ends_with_5_before_a_run_is_begun(
    train: Train, workspace: Workspace, tensors: dict[str, torch.Tensor], sentence: str
) -> None:
    save_file(tensors, workspace.root / "wrong.safetensors")
    recipe, wrong = str(workspace.root / "tiny.yaml"), workspace.root / "wrong.safetensors"
    result = train(recipe, "--set", f"image_encoder.weights=file:{wrong}")
    assert result.exit_code == 5, result.output
    assert sentence in " ".join(result.stderr.split())
    assert not (workspace.root / "runs").exists()


def test_resuming_a_finished_run_or_with_another_recipe_is_refused(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(workspace, monkeypatch, "mine")
    with pytest.raises(UsageError, match="mine was started with the recipe tiny, not ucm"):
        start_training(TrainRequest("ucm", name="mine", resume=True), workspace, Silent(), CPU)
    (workspace.root / "runs" / "mine" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="mine is finished"):
        start_training(TrainRequest(name="mine", resume=True), workspace, Silent(), CPU)
    with pytest.raises(DataError, match=r"there is no unfinished training in .*; mine is finished"):
        resume.unfinished_run(workspace.root / "runs")


def test_the_data_set_is_named_so_that_a_newer_one_is_not_taken(workspace: Workspace, squares: PreparedDataset) -> None:
    here = open_prepared(workspace.root / "data" / "squares")
    assert start.name_data(Recipe(), here, workspace).data.dataset == "squares"
    assert start.name_data(Recipe(), squares, workspace).data.dataset == str(squares.root.absolute())


@pytest.mark.slow  # test_killing.py sees the same in a fork
def test_ctrl_c_says_how_to_resume_and_exits_130(workspace: Workspace) -> None:
    command = [
        sys.executable, "-m", "cmpagl_cli", "--workspace", str(workspace.root), "--threads", "1", "--device", "cpu",
        "train", str(workspace.root / "tiny.yaml"), "--set", "train.epochs=10000",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = workspace.root / "runs" / "tiny" / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.is_file() and '"validation"' in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "training of tiny was stopped; its state is saved" in stderr
    assert "resume it with `cmpagl train --resume --name tiny`" in stderr
    assert "Traceback" not in stderr
    assert resume.read_about(workspace.root / "runs" / "tiny")[1].step > 0
