"""What `benchmarks/` does beside timing: the modules load, and the image encoder's operations are counted."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_loads(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_a_profile_names_every_second_of_a_step() -> None:
    bench = importlib.import_module("bench_image_encoder")
    left, right = torch.randn(2, 300, 300)
    taken = bench.kinds_s(lambda: torch.nn.functional.gelu(left @ right).clone())
    assert set(taken) == {*bench.KINDS, bench.REST}
    assert min(taken["matrix products"], taken["GELU"], taken["copies and casts"]) > 0
    assert taken["layer norms"] == taken["optimiser"] == 0


def test_the_global_window_adds_a_quarter_of_operations_to_swins() -> None:
    bench = importlib.import_module("bench_image_encoder")
    pixel_values = torch.zeros(2, 3, bench.SIZE_PX, bench.SIZE_PX)
    with_it, without = (
        bench.flops(bench.encoders(global_window)[0].eval(), pixel_values) for global_window in (True, False)
    )
    assert without == pytest.approx(2 * 2 * 4.5e9, rel=0.01)  # Swin-T's 4.5 G multiply-adds, for two images
    assert 1.2 < with_it / without < 1.35


def test_traffic_is_what_operators_read_and_write() -> None:
    traffic = importlib.import_module("_traffic")
    row, column, square = torch.zeros(1, 10), torch.zeros(10, 1), torch.zeros(10, 10)
    expected = {
        "reads two and writes one": (lambda: row + row * 2, 4 * (10 + 10) + 4 * (10 + 10 + 10)),
        "an expanded one is read as it is stored": (lambda: square + column.expand(10, 10), 4 * (100 + 10 + 100)),
        "a view moves nothing": (lambda: square.t().unsqueeze(0).expand(3, 10, 10), 0),
        "in place": (lambda: square.add_(row), 4 * (100 + 10)),
        "written into": (lambda: torch.empty(10, 10).copy_(square), 4 * (100 + 100)),
        "left out": (lambda: square @ square, 0),
    }
    for what, (work, moved) in expected.items():
        with traffic.Traffic(but=("mm",)) as counted:
            work()
        assert counted.bytes == moved, what
