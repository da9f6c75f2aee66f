"""`cmpagl serve` under load from a process of its own, every query another text: latencies, memory, the page.

`python benchmarks/bench_serve.py 600` keeps the sixteen clients at it for ten minutes, to see that memory stays flat;
without a number they ask for a minute.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
from _measure import note, report
from bench_cold import make_index

DIM, CLIENTS, SECONDS, WARM_S = 512, 16, 60, 20
TEXT_HALF = "minilm-l6"
FLAT_MB = 10  # what a server may gain, of the hundreds that it has, after a warm-up that fills its caches
HITS = 20
_WORDS = ("airport", "harbour", "storage", "river", "field", "bridge", "stadium", "forest", "beach", "railway")
_texts = itertools.count()
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@contextmanager
def serving(workspace: str) -> Iterator[tuple[str, int]]:
    """A server's address and process."""
    command = [sys.executable, "-m", "cmpagl_cli", "--workspace", workspace, "--quiet", "serve", "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("http://").rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def text() -> str:
    """Another one each time."""
    number = next(_texts)
    return f"word{number % 8000} {_WORDS[number % 10]} near a {_WORDS[number // 10 % 10]} {number}"


def ask(connection: http.client.HTTPConnection) -> float:
    """Seconds until an answer is read."""
    started_at = time.perf_counter()
    connection.request("GET", f"/api/search?{urlencode({'q': text(), 'k': HITS})}")
    answer = connection.getresponse()
    content = answer.read()
    taken_s = time.perf_counter() - started_at
    assert answer.status == 200, content[:300]
    assert len(json.loads(content)["hits"]) == HITS
    return taken_s


def clients(address: str, count: int, seconds: float, every_s: float | None) -> list[float]:
    """Seconds of each answer to clients that ask at set times, or again as soon as they are answered."""
    taken: list[float] = []
    ends_at = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        next_at = time.perf_counter() + (every_s or 0) * number / count
        while (now := time.perf_counter()) < ends_at:
            if every_s is not None:
                time.sleep(max(0.0, next_at - now))
                next_at += every_s
            taken.append(ask(connection))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def resident_mb(process: int) -> float:
    """Memory of a process that is its own, without what is mapped from files."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
_FRAMES = """count => new Promise(done => {
    const view = document.getElementById("hits"), times = [];
    const step = now => {
        times.push(now);
        view.scrollTop += 300;
        if (times.length <= count) requestAnimationFrame(step);
        else done(times.slice(1).map((time, place) => (time - times[place]) / 1000));
    };
    requestAnimationFrame(step);
})"""


def page_s(address: str) -> tuple[float, float] | None:
    """The page in Chromium: first paint, median of five; p95 of frames while it scrolls. None if not installed."""
    path = os.environ.get("CMPAGL_CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if path is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        painted = []
        for _ in range(6):
            page = browser.new_context().new_page()
            page.goto(f"http://{address}/")
            page.wait_for_function(f"({_PAINT}) !== null")
            painted.append(page.evaluate(_PAINT) / 1000)
        page.goto(f"http://{address}/?q=harbour")
        page.locator(".card .open").first.wait_for()
        frames = page.evaluate(_FRAMES, 300)
        browser.close()
    return float(np.median(painted[1:])), float(np.quantile(frames, 0.95))


def measured(images: int, work: Callable[[str, int], bool]) -> bool:
    """Do some work against a server of so many images."""
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder, "indexes", "many"), TEXT_HALF, images, DIM)
        with serving(folder) as (address, process):
            clients(address, CLIENTS, WARM_S, None)  # as many as later, since each worker thread has memory of its own
            return work(address, process)


def main() -> int:
    """Print one line for each measurement."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS

    def many_clients(address: str, process: int) -> bool:
        before = resident_mb(process)
        taken = clients(address, CLIENTS, seconds, 1.0)
        title = f"serve, 100,000 x {DIM}, {CLIENTS} clients, a query a second each"
        gained = max(0.01, resident_mb(process) - before)
        met = [
            report(f"{title}: p95", float(np.quantile(taken, 0.95)), "s", 0.1),
            report(f"{title}: memory gained by {len(taken):,} queries in {seconds:.0f} s", gained, "MB", FLAT_MB),
        ]
        note(f"{title}: median", float(np.median(taken)), "s")
        answered = len(clients(address, CLIENTS, 20, None))
        note(f"serve, 100,000 x {DIM}, {CLIENTS} clients in a closed loop", answered / 20, "queries/s")
        page = page_s(address)
        if page is not None:
            met.append(report("serve, first paint of the page", page[0], "s", 0.3))
            note("serve, scrolling through 100,000 hits: p95 of frames", page[1], "s")
        return all(met)

    def one_client(address: str, _: int) -> bool:
        taken = clients(address, 1, min(seconds, SECONDS), None)
        note(f"serve, 1,000,000 x {DIM}, one client: median", float(np.median(taken)), "s")
        return report(f"serve, 1,000,000 x {DIM}, one client: p95", float(np.quantile(taken, 0.95)), "s", 0.2)

    met = [measured(100_000, many_clients), measured(1_000_000, one_client)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
