"""Several processes train as one would: the same losses, gradients, validation, log and state."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmpagl_core.datasets.loading import PairBatch, PairLoader, image_source
from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.errors import UsageError
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import open_run
from cmpagl_core.training.journal import read_journal
from tests.training.scripts import run_script

HERE = Path(__file__).parent
STEPS = 9  # of the tiny recipe: 3 epochs of 16 images in batches of 6, 5 and 5

MakeRecipe = Callable[..., Recipe]


def ranked(squares: PreparedDataset, tiny_yaml: str, out: Path, *wanted: str) -> dict[str, Any]:
    """What ranked.py prints."""
    (out / "tiny.yaml").write_text(tiny_yaml)
    said = run_script(HERE / "ranked.py", out / "said", squares.root, out / "tiny.yaml", out, *wanted)
    found: dict[str, Any] = json.loads(said)
    return found


RESUME = "its state is saved; resume it with `cmpagl train --resume --name"
LOST = "1: another process of the training of {name} has ended, and so did this one; {resume} {name}`"


def test_several_processes_train_as_one_would(squares: PreparedDataset, tiny_yaml: str, tmp_path: Path) -> None:
    """One test, since what it looks at is made in one go: losses, gradients, validation, and two stories."""
    found = ranked(squares, tiny_yaml, tmp_path, "joint", "2:1:KILL,1", "1:0:INT,2")
    check_losses_and_gradients(found["joint"])
    check_validations(found["joint"])
    killed = check_story(found["stories"]["2:1:KILL,1"], tmp_path / "run0")
    assert killed["ends"] == [LOST.format(name="run0", resume=RESUME), "signal 9"]
    check_story(found["stories"]["1:0:INT,2"], tmp_path / "run1")


def check_losses_and_gradients(joint: dict[str, Any]) -> None:
    """Those of two and three processes are those of one."""
    assert len(joint) == 7
    assert joint["every loss, 2"]["pairs"] == [[3], [2]]  # uneven
    assert joint["hardest, accumulated, 3"]["pairs"] == [[2, 2], [2, 2], [2, 1]]
    for case, gaps in joint.items():
        for figure in ("loss", "terms", "cosine", "shares"):
            assert gaps[figure] < 1e-5, (case, figure)
        assert gaps["gradients"] < 1e-5 * max(1.0, gaps["greatest"]), case


def check_validations(joint: dict[str, Any]) -> None:
    """Several processes count each image once."""
    for case, gaps in joint.items():
        whole, *others = gaps["validations"]
        assert all(other == whole for other in others), case


@pytest.mark.slow
def test_each_of_several_processes_can_be_stopped_or_killed(
    squares: PreparedDataset, tiny_yaml: str, tmp_path: Path
) -> None:
    stories = ranked(squares, tiny_yaml, tmp_path, "2:1:TERM,1", "2:0:KILL,2", "3:1:TERM,2")["stories"]
    for number, story in enumerate(stories.values()):
        check_story(story, tmp_path / f"run{number}")
    stopped = "130: training of {name} was stopped; {resume} {name}`"
    assert stories["2:1:TERM,1"][0]["ends"] == [stopped.format(name="run0", resume=RESUME)] * 2  # as asked of one
    assert stories["2:0:KILL,2"][0]["ends"] == ["signal 9", LOST.format(name="run1", resume=RESUME)]
    assert stories["3:1:TERM,2"][0]["ends"] == [stopped.format(name="run2", resume=RESUME)] * 3


def check_story(story: list[dict[str, Any]], root: Path) -> dict[str, Any]:
    """Its first part ended soon after its first process, its second finished the run. Returns the first."""
    first, second = story
    assert first["unfinished"]
    assert first["seconds"] < 30
    assert set(second["ends"]) == {"finished"}
    check_run(root)
    return first


def check_run(root: Path) -> None:
    """Its log has every step and validation once, and it is complete."""
    assert open_run(root).info.epochs == 3
    events = list(read_journal(root / "log.jsonl"))
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, STEPS + 1))
    assert [event["epoch"] for event in events if event["event"] == "validation"] == [1, 2, 3]
    rest = {path.name for path in root.iterdir() if path.suffix not in (".json", ".png")}
    assert rest == {"log.jsonl", "model.safetensors", "recipe.yaml"}


@pytest.mark.slow
def test_the_command_starts_processes_and_says_one_sentence_when_one_is_killed(
    squares: PreparedDataset, backbone_yaml: str, tmp_path: Path
) -> None:
    (tmp_path / "squares.yaml").write_text(backbone_yaml)
    command = [
        sys.executable,
        "-m",
        "cmpagl_cli",
        "train",
        "squares.yaml",
        "--data",
        str(squares.root),
        "--devices",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, *arguments], cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    done = start("--name", "whole", "--format", "json")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert json.loads(out)["run"] == "whole"
    assert err.count("epoch 1:") == 1  # rank 0 alone shows progress
    going = start("--name", "killed", "--set", "train.epochs=100000")
    log = tmp_path / "runs" / "killed" / "log.jsonl"
    while not (log.is_file() and '"step": 3,' in log.read_text()):
        assert going.poll() is None, going.communicate()[1]
        time.sleep(0.1)
    victim = rank_of(going.pid, 1)
    os.kill(victim, signal.SIGKILL)
    out, err = going.communicate(timeout=30)
    assert going.returncode in (1, 130)  # the launcher tells the others to end, which one may hear first
    assert out == ""
    ends = [line for line in err.splitlines() if "resume it with `cmpagl train --resume --name killed`" in line]
    assert len(ends) == 1, err
    assert (tmp_path / "runs" / "killed" / "resume" / "state.safetensors").is_file()


@pytest.mark.slow
def test_two_machines_of_torchrun_train_one_run(squares: PreparedDataset, tiny_yaml: str, tmp_path: Path) -> None:
    """Two agents that meet by torchrun's own rendezvous, as those of two machines do."""
    (tmp_path / "tiny.yaml").write_text(tiny_yaml)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test")
    ours = ("-m", "cmpagl_cli", "train", "tiny.yaml", "--data", str(squares.root), "--name", "two", "--format", "json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting, *ours]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    documents = [json.loads(out) for out, _ in said if out]
    assert [one["run"] for one in documents] == ["two"]  # rank 0 alone
    check_run(tmp_path / "runs" / "two")


def rank_of(parent: int, rank: int) -> int:
    """The process of that rank among the children of the command."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError("there is no such process")


def test_processes_share_every_batch_and_agree_on_the_positives(
    squares: PreparedDataset, tiny_recipe: MakeRecipe
) -> None:
    recipe, split = tiny_recipe(), squares.split("train")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, split.captions)
    alone = PairLoader(split, recipe.data, 6, tokenizer, image_source(split, recipe.data), seed=3)
    parts = [list(alone.shared(Ranks(rank, 3)).epoch(1)) for rank in range(3)]
    for whole, *shared in zip(alone.shared(ALONE).epoch(1), *parts, strict=True):
        joined = [one for one in shared if one.joint is not None]
        assert len(joined) == 3
        assert whole.captions == tuple(text for one in shared for text in one.captions)
        assert torch.equal(whole.images, torch.cat([one.images for one in shared]))
        assert torch.equal(whole.positives, torch.cat([one.positives for one in shared]))
        assert torch.equal(whole.positives.t(), torch.cat([_text_positives(one) for one in shared]))
        assert {one.joint_pairs for one in shared} == {len(whole)}


def _text_positives(batch: PairBatch) -> torch.Tensor:
    assert batch.joint is not None
    return batch.joint.text_positives


def test_more_processes_than_pairs_are_refused(squares: PreparedDataset, tiny_recipe: MakeRecipe) -> None:
    recipe, split = tiny_recipe(), squares.split("train")
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, split.captions)
    loader = PairLoader(split, recipe.data, 6, tokenizer, image_source(split, recipe.data), seed=3)
    with pytest.raises(UsageError, match="a batch of 5 pairs cannot be shared by 7 processes"):
        loader.shared(Ranks(0, 7))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_cover_all_rows_once_as_array_split_does(count: int) -> None:
    for total in (0, 1, 4, 7):
        rows = np.arange(total)
        parts = [rows[Ranks(rank, count).part(total)] for rank in range(count)]
        assert [part.tolist() for part in parts] == [part.tolist() for part in np.array_split(rows, count)]
        assert Ranks(0, count).sizes(total) == tuple(len(part) for part in parts)
