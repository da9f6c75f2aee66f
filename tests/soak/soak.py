"""An index that is updated and a server that is asked, for long: python soak.py OUT.json [--minutes N]; `make soak`.

The server runs over an index while that is updated again and again beside it, with 64 clients of whom every fifth
request is malformed. Every answer, of the server and of each index, is compared with a full sort of all scores. The
memory of both processes may grow by 5 % after the first fifth of the time, and neither handles nor threads may. A faiss
index is approximate: what it finds must have the exact scores, and of the exact ten best it must find 99 % overall.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.index import GalleryIndex, open_index
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.search.store_files import StoreChoice
from tests.conftest import FakeEncoder

CLIENTS = 64
IMAGES = 400
GROWTH = 0.05
_K, _RECALL = 10, 0.99
_REST_S = 0.4  # of a client between two requests, so that 64 of them leave the machine usable
_WORDS = ("airport", "river", "field", "harbour", "roof", "road", "forest", "tank", "bridge", "beach")
_MALFORMED = (
    b"GET /api/search?q=a HTTP/9.9\r\n\r\n",
    b"\x00\xff\x16\x03\x01 no http",
    b"GET /api/search?q=" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 30\r\n\r\n--b\r\nContent-Disposition: x",
    b"POST /api/export HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    b"[[[[[[[[[",
    b"GET /api/search?q=%ff%fe&k=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/thumbnails/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    b"GET /",
)


class Encoder(FakeEncoder):
    """Remembers nothing of what it was asked."""

    def encode_texts(self, texts: Any) -> Any:
        found = super().encode_texts(texts)
        self.texts.clear()
        return found


@dataclass
class State:
    """What a process holds."""

    memory_kib: int
    handles: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> State:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        handles = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(int(status["VmRSS"].split()[0]), handles, int(status["Threads"]))


@dataclass
class Result:
    """What became of it. wrong: sentences."""

    minutes: float
    clients: int = CLIENTS
    answers: int = 0
    malformed: int = 0
    updates: int = 0
    queries: int = 0
    sought: int = 0  # of a faiss index
    found: int = 0  # of these
    server: dict[str, list[int]] = field(default_factory=dict)
    updater: dict[str, list[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def draw(path: Path, generator: random.Random) -> None:
    pixels = np.frombuffer(generator.randbytes(8 * 8 * 3), dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(path)


def exact(index: GalleryIndex, feature: np.ndarray, k: int) -> list[tuple[str, float]]:
    """The k best by a full sort, equal scores by their ids."""
    scores = index.image_features.astype(np.float64) @ feature.astype(np.float64)
    order = sorted(range(len(index)), key=lambda row: (-scores[row], index.image_ids[row]))
    return [(index.image_ids[row], float(scores[row])) for row in order[:k]]


def same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> bool:
    return [one for one, _ in found] == [one for one, _ in expected] and np.allclose(
        [score for _, score in found], [score for _, score in expected], atol=1e-5
    )


def serve(root: Path) -> None:
    """The server's process: prints its port."""
    from cmpagl_core.serve.app import make_app
    from cmpagl_core.serve.server import listen, run
    from cmpagl_core.session import Session
    from cmpagl_core.workspace import Workspace

    encoder: Any = Encoder()
    device: Any = None
    session = Session(Workspace(root), Silent(), device)
    listening = listen("127.0.0.1", 0)
    searcher = Searcher(open_index(root / "indexes" / "a"), lambda: encoder, Silent())
    run(
        make_app(searcher, session, listening.access), listening,
        lambda: print(listening.access.port, flush=True),
    )  # fmt: skip


class Client(threading.Thread):
    """Asks until it is told to stop."""

    def __init__(self, number: int, port: int, index: GalleryIndex, images: Path, end: threading.Event) -> None:
        super().__init__(daemon=True)
        self._generator = random.Random(number)
        self._port, self._index, self._images, self._end = port, index, images, end
        self._encoder = Encoder()
        self.answers = self.malformed = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self._end.is_set():
            try:
                if self._generator.random() < 0.2:
                    self._nonsense()
                else:
                    self._ask()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            self._end.wait(self._generator.uniform(0, 2 * _REST_S))

    def _nonsense(self) -> None:
        with socket.create_connection(("127.0.0.1", self._port), 60) as connection:
            connection.sendall(self._generator.choice(_MALFORMED))
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(65536)
            except ConnectionResetError:
                answer = b""
        self.malformed += 1
        if answer.startswith(b"HTTP/1.1 5") or b"unexpected" in answer:
            self.wrong.append(f"a malformed request was answered with {answer[:200]!r}")

    def _ask(self) -> None:
        what = self._generator.choice(("text", "item", "image", "thumbnail"))
        row = self._generator.randrange(len(self._index))
        name = self._index.image_ids[row]
        body, headers = None, {}
        if what == "text":
            text = " ".join(self._generator.choices(_WORDS, k=3))
            path, feature = "/api/search?" + urlencode({"q": text, "k": _K}), self._encoder.encode_texts([text])[0]
        elif what == "item":
            path, feature = "/api/search?" + urlencode({"like": name, "k": _K}), self._index.image_features[row]
        elif what == "image":
            path, feature = f"/api/search?k={_K}", self._index.image_features[row]
            content = (self._images / name).read_bytes()
            head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
            body, headers = head + content + b"\r\n--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
        else:
            path, feature = f"/api/thumbnails/{name}", None
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.answers += 1
        if answer.status != 200:
            self.wrong.append(f"{path}: {answer.status} {content[:200]!r}")
        elif feature is not None:
            found = [(hit["image_id"], hit["score"]) for hit in json.loads(content)["hits"]]
            if not same(found, exact(self._index, feature, _K)):
                self.wrong.append(f"{path}: not what a full sort finds")


def update(folder: Path, root: Path, store: str, number: int, generator: random.Random, result: Result) -> None:
    """Add, change and remove images, bring an index up to date, and compare its answers."""
    for _ in range(3):
        draw(folder / f"new{generator.randrange(60):02d}.png", generator)
    for path in sorted(folder.glob("new*.png"))[: generator.randrange(3)]:
        path.unlink()
    encoder: Any = Encoder()
    index = build_index(encoder, folder_source(folder), root, Silent(), store=StoreChoice.parse(store)).index
    result.updates += 1
    searcher = Searcher(index, lambda: encoder, Silent())
    for _ in range(20):
        text = f"{generator.choice(_WORDS)} {number}"
        hits = searcher.search([TextQuery(text)], _K)[0]
        found = [(hit.image.image_id, hit.score) for hit in hits]
        result.queries += 1
        ranking = exact(index, encoder.encode_texts([text])[0], len(index))
        if store == "faiss":
            result.sought += _K
            result.found += len({name for name, _ in ranking[:_K]} & {name for name, _ in found})
            names = [name for name, _ in found]
            ranking = [one for one in ranking if one[0] in names]
        if not same(found, ranking[: len(found)]) or len(found) != _K:
            result.wrong.append(f"{store}, update {number}, {text!r}: not what a full sort finds")


def soak(minutes: float) -> Result:
    """Run it all."""
    result = Result(minutes)
    generator = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="cmpagl-soak-") as name:
        folder, changing = Path(name) / "images", Path(name) / "changing"
        folder.mkdir()
        for number in range(IMAGES):
            draw(folder / f"image{number:03d}.png", generator)
        root = Path(name) / "indexes" / "a"
        encoder: Any = Encoder()
        index = build_index(encoder, folder_source(folder), root, Silent()).index
        shutil.copytree(folder, changing)
        command = [sys.executable, __file__, "--serve", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            end = threading.Event()
            clients = [Client(number, port, index, folder, end) for number in range(CLIENTS)]
            for client in clients:
                client.start()
            _watch(server.pid, minutes, folder, changing, root, generator, result)
            end.set()
            for client in clients:
                client.join(120)
            time.sleep(3)
            _compare("server", result.server, State.of(server.pid), result, idle=True)
            server.terminate()
            if server.wait(60) != 0:
                result.wrong.append(f"the server ended with {server.returncode}")
        if result.found < _RECALL * result.sought:
            result.wrong.append(f"faiss found {result.found:,} of {result.sought:,}")
        result.answers = sum(client.answers for client in clients)
        result.malformed = sum(client.malformed for client in clients)
        result.wrong += [said for client in clients for said in client.wrong]
    return result


def _watch(
    server: int, minutes: float, folder: Path, changing: Path, root: Path, generator: random.Random, result: Result
) -> None:
    """Update, and look at both processes, from a fifth of the time on."""
    started_at, number = time.monotonic(), 0
    is_warm = False
    while (elapsed := time.monotonic() - started_at) < 60 * minutes:
        number += 1
        if number % 5 == 0:  # the index that is served: what it was opened with stays as it was
            draw(folder / f"late{number % 50:02d}.png", generator)
            build_index(Encoder(), folder_source(folder), root, Silent())  # type: ignore[arg-type]
            result.updates += 1
        store = ("exact", "faiss")[number % 2]
        update(changing, root.parent / store, store, number, generator, result)
        if not is_warm and elapsed > 12 * minutes:
            is_warm = True
            result.server = {key: [value] for key, value in asdict(State.of(server)).items()}
            result.updater = {key: [value] for key, value in asdict(State.of(os.getpid())).items()}
    for name, pid, known in (("server", server, result.server), ("updater", os.getpid(), result.updater)):
        _compare(name, known, State.of(pid), result)


def _compare(name: str, known: dict[str, list[int]], now: State, result: Result, idle: bool = False) -> None:
    for key, value in asdict(now).items():
        known[key].append(value)
    before, after = known["memory_kib"][0], now.memory_kib
    if after > (1 + GROWTH) * before:
        result.wrong.append(f"the {name}'s memory grew from {before:,} to {after:,} KiB")
    for key in ("handles", "threads"):
        allowed = 0 if idle else CLIENTS  # as many connections may be open by chance
        if known[key][-1] > known[key][0] + allowed:
            result.wrong.append(f"the {name}'s {key} grew from {known[key][0]} to {known[key][-1]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--serve", type=Path)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve(asked.serve)
        return
    result = soak(asked.minutes)
    content = json.dumps({**asdict(result), "wrong": result.wrong[:50], "wrong_count": len(result.wrong)}, indent=1)
    if asked.out is not None:
        asked.out.write_text(content + "\n")
    print(content)
    sys.exit(1 if result.wrong else 0)


if __name__ == "__main__":
    main()
