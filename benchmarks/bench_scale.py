"""Stores of 10^5 to 10^7 images x 512: time to build, bytes, memory, latency of one query, recall of the exact top 10.

    python benchmarks/bench_scale.py [--rows 100000 1000000] [--stores exact int8 faiss ivfpq milvus] [--folder DIR]
    python benchmarks/bench_scale.py --spectrum-of WORKSPACE/indexes/NAME

Features are drawn: Gaussian with the mean and covariance's spectrum of real features (scale_spectrum.json, which
--spectrum-of writes), in random directions, of unit length. Queries are drawn alike, so no row is near them by design.
Each store is built and asked in a process of its own, one after the other; memory is the most that the process has for
itself at once (RssAnon), to which the pages of the mapped features come as far as the machine has room; a store that
takes more than --most-gib is ended. Milvus is Milvus Lite, or the cluster at CMPAGL_BENCH_MILVUS. --half keeps the
features in half precision, where the disk has no room for more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cmpagl_core.device import keep_freed_memory
from cmpagl_core.progress import Silent
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.store import Store

SPECTRUM = Path(__file__).parent / "scale_spectrum.json"
DIM, K, QUERIES = 512, 10, 100
STORES = ("exact", "int8", "faiss", "ivfpq", "milvus")
AT_ONCE = 65_536
LATENCY_S = 120.0  # queries are timed for about so long, five at least
AT_LEAST = 5
SPARE_BYTES = 3 << 30  # of the disk
STATUS = Path("/proc/self/status")
MILVUS_URI = "CMPAGL_BENCH_MILVUS"  # of a cluster, in place of a Milvus Lite file; its bytes are for it to say


def write_spectrum(index: Path) -> None:
    """The eigenvalues of real features' covariance, and their mean in its directions."""
    from cmpagl_core.search.index import open_index

    features = np.asarray(open_index(index).image_features, dtype=np.float64)
    values, directions = np.linalg.eigh(np.cov(features.T))
    mean = features.mean(axis=0) @ directions
    content = {
        "images": len(features),
        "variances": [float(f"{max(value, 0):.4g}") for value in values[::-1]],
        "mean": [float(f"{value:.4g}") for value in mean[::-1]],
    }
    SPECTRUM.write_text(json.dumps(content) + "\n")


class Drawn:
    """Unit rows [N, 512] with the spectrum of real features."""

    def __init__(self) -> None:
        content = json.loads(SPECTRUM.read_text())
        rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0)))[0]
        self._spread = torch.tensor(content["variances"]).sqrt()[:, None] * rotation
        self._mean = torch.tensor(content["mean"]) @ rotation

    def rows(self, count: int, seed: int) -> NDArray[np.float32]:
        normal = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
        drawn = torch.nn.functional.normalize(normal @ self._spread + self._mean, dim=1)
        return np.asarray(drawn.numpy())


def write_features(path: Path, count: int) -> None:
    """Raises SystemExit where the disk has no room."""
    dtype = np.dtype(np.float16 if path.suffix == ".f16" else np.float32)
    needed = count * DIM * dtype.itemsize
    free = shutil.disk_usage(path.parent).free
    if free < needed + SPARE_BYTES:
        sys.exit(f"{count:,} rows need {needed / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB")
    drawn = Drawn()
    with path.open("wb") as stream:
        for number, start in enumerate(range(0, count, AT_ONCE)):
            stream.write(drawn.rows(min(AT_ONCE, count - start), number + 1).astype(dtype).tobytes())


class Widened:
    """Features in half precision, widened as they are read."""

    def __init__(self, path: Path) -> None:
        self._rows = np.memmap(path, dtype=np.float16, mode="r").reshape(-1, DIM)
        self.shape, self.nbytes = self._rows.shape, self._rows.nbytes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        return self._rows[rows].astype(np.float32)


def mapped(path: Path) -> NDArray[np.float32]:
    if path.suffix == ".f16":
        return cast("NDArray[np.float32]", Widened(path))
    return np.memmap(path, dtype=np.float32, mode="r").reshape(-1, DIM)


class Peak:
    """The most anonymous memory of this process, looked at ten times a second."""

    def __init__(self, most_bytes: float) -> None:
        self.bytes, self._most = 0, most_bytes
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            if self.bytes > self._most:
                os.write(2, f"ended: it took {self.bytes:,} bytes of memory\n".encode())
                os._exit(3)


def build(name: str, exact: ExactStore, folder: Path) -> tuple[Store, int]:
    """A store, and its bytes on disk beside the features, or in memory for int8."""
    if name == "int8":
        from cmpagl_core.search.stores.int8 import Int8Store

        return Int8Store(exact, Silent()), len(exact) * (DIM + 2)
    if name in ("faiss", "ivfpq"):
        from cmpagl_core.search.stores.faiss import FaissStore

        store = FaissStore.build(exact, Silent(), "ivfpq" if name == "ivfpq" else None)
        store.save(folder / "index.faiss")
        return store, (folder / "index.faiss").stat().st_size
    if name == "milvus":
        from cmpagl_core.search.stores.milvus import MilvusStore

        uri = os.environ.get(MILVUS_URI, str(folder / "lite.db"))
        milvus = MilvusStore(exact, np.arange(len(exact)), uri, f"cmpagl_bench_{len(exact)}")
        milvus.write(Silent())
        found = folder / "lite.db"
        files = found.rglob("*") if found.is_dir() else [found]
        return milvus, sum(file.stat().st_size for file in files if file.is_file())
    return exact, 0


def measure(name: str, path: Path, truth: Path, threads: int, most_gib: float) -> dict[str, Any]:
    torch.set_num_threads(threads)
    keep_freed_memory()
    features = mapped(path)
    exact, peak = ExactStore(features), Peak(most_gib * 2**30)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        started_at, cpu_s = time.perf_counter(), time.process_time()
        store, own_bytes = build(name, exact, Path(folder))
        build_s, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_s
        queries = Drawn().rows(QUERIES, 0)
        if name == "exact":
            np.save(truth, store.top_k(queries, K).rows)
        expected = np.load(truth)
        taken, hits = [], 0
        begun_at = time.perf_counter()
        for number, query in enumerate(queries):
            started_at = time.perf_counter()
            found = store.top_k(query[None], K).rows[0]
            taken.append(time.perf_counter() - started_at)
            hits += len(np.intersect1d(found, expected[number]))
            if len(taken) >= AT_LEAST and time.perf_counter() - begun_at > LATENCY_S:
                break
        return {
            "bench": "stores at scale",
            "store": name,
            "rows": len(features),
            "dim": DIM,
            "dtype": "float16" if path.suffix == ".f16" else "float32",
            "build_s": round(build_s, 2),
            "build_cpu_s": round(cpu_s, 2),
            "feature_bytes": features.nbytes,
            "store_bytes": own_bytes,
            "memory_bytes": peak.bytes,
            "queries": len(taken),
            "p50_ms": round(1e3 * float(np.percentile(taken[1:], 50)), 2),
            "p95_ms": round(1e3 * float(np.percentile(taken[1:], 95)), 2),
            "recall_at_10": round(hits / (K * len(taken)), 4),
            "threads": threads,
            "load": round(os.getloadavg()[0], 1),
        }


def main() -> int:
    """Print one line for each store and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--stores", nargs="+", default=["exact", "int8"], choices=STORES)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-gib", type=float, default=8.0)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--spectrum-of", type=Path, default=None)
    parser.add_argument("--one", nargs=3, default=None, metavar=("STORE", "FEATURES", "TRUTH"))
    given = parser.parse_args()
    if given.spectrum_of is not None:
        write_spectrum(given.spectrum_of)
        return 0
    if given.one is not None:
        name, path, truth = given.one
        print(json.dumps(measure(name, Path(path), Path(truth), given.threads, given.most_gib)), flush=True)
        return 0
    stores = [
        "exact",
        *(name for name in given.stores if name != "exact"),
    ]  # whose answers the others are compared with
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for count in given.rows:
            path, truth = Path(folder, "features.f16" if given.half else "features.f32"), Path(folder, "truth.npy")
            write_features(path, count)
            for name in stores:
                call = [sys.executable, __file__, "--threads", str(given.threads), "--most-gib", str(given.most_gib)]
                subprocess.run([*call, "--one", name, str(path), str(truth)], check=name == "exact")
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
