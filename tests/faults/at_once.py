"""Let two and five processes do the same work at once: python at_once.py FOLDER [--whole]; used by test_at_once.py.

--whole: the work that needs torch: trainings, evaluations and studies.

Prints, as JSON, for each work the exit codes and what was said, what is not whole, what is left, and how the end
differs from that of one process alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.sweep import State, broken_files, left_overs
from tests.faults.workspace import CASES, fill, index_with_fake, warm_up


def prepare() -> None:
    from cmpagl_cli.entry import main

    sys.argv = ["cmpagl", "prepare", "folder", "mine", "--name", "mine", "--copy"]
    main()


def index() -> None:
    index_with_fake("mine", "indexes/fake")


def export() -> None:
    from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, save_feature_set
    from cmpagl_core.errors import CmpaglError

    info = FeatureInfo("tiny", "", "mine", "", "test", "", "as usual", "fp32")
    rows, texts = np.eye(300, dtype=np.float32), tuple(map(str, range(300)))
    features = FeatureSet(rows, rows, np.arange(300), texts, ("0" * 64,) * 300, texts, texts, info)
    try:
        save_feature_set(Path("out/features.safetensors"), features)
    except CmpaglError as error:
        print(f"error: {error}")
        raise SystemExit(int(error.exit_code)) from error
    raise SystemExit(0)


def serve_upload() -> None:
    """What a server does with an upload: a scratch folder of its own."""
    from cmpagl_core.files import scratch_folder

    for _ in range(20):
        with scratch_folder("serve") as folder:
            (folder / "uploaded").write_text("a")
            assert (folder / "uploaded").read_text() == "a"
    raise SystemExit(0)


def command(*words: str) -> Callable[[], None]:
    """A command line, as work."""

    def work() -> None:
        from cmpagl_cli.entry import main

        sys.argv = ["cmpagl", *words]
        main()

    return work


@dataclass(frozen=True)
class Work:
    """What processes do at once, after commands that make its workspace.

    is_shared: whether one's result is all of theirs; each training makes a run of its own.
    """

    do: Callable[[], None]
    before: tuple[tuple[str, ...], ...] = ()
    is_shared: bool = True


WORKS = {"prepare": Work(prepare), "index": Work(index), "export": Work(export), "upload": Work(serve_upload)}
WHOLE = {
    name: Work(command(*CASES[case].command), CASES[case].before, is_shared)
    for name, case, is_shared in (("evaluate", "evaluate", True), ("tune", "tune", True), ("ablate", "ablate", True))
} | {"train": Work(command("train", "tiny.yaml"), CASES["train"].before, is_shared=False)}


def started(work: Callable[[], None], said: Path, gate: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.read(gate, 1)
        work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def together(work: Work, count: int, root: Path, told: Path) -> dict[str, Any]:
    """All start when the gate opens."""
    root.mkdir()
    os.chdir(root)
    fill(root)
    (root / "tmp").mkdir()
    os.environ["TMPDIR"] = str(root / "tmp")
    for words in work.before:
        alone = started(command(*words), told / "before", os.open("/dev/null", os.O_RDONLY))
        assert os.waitpid(alone, 0)[1] == 0, (told / "before").read_text()
    gate, opened = os.pipe()
    children = [started(work.do, told / f"said{number}", gate) for number in range(count)]
    os.write(opened, b"x" * count)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {
        "codes": codes,
        "said": [(told / f"said{number}").read_text() for number in range(count)],
        "broken": list(broken_files(root)),
        "left": left_overs(root),
        "runs": len(list((root / "runs").glob("*/run.json"))),
    }


def main() -> None:
    folder, whole = Path(sys.argv[1]).resolve(), sys.argv[2:] == ["--whole"]
    warm_up(whole)
    results = {}
    for name, work in (WHOLE if whole else WORKS).items():
        root, ends = folder / "workspace", []
        for count in (1, 1, 2, 5):
            told = together(work, count, root, folder)
            ends.append(State.of(root))
            os.chdir(folder)
            shutil.rmtree(root)
            if count > 1:
                expected = ends[0].common(ends[1])
                told["differences"] = list(ends[-1].differences(expected)) if work.is_shared else []
                results[f"{count} {name}"] = told
    print(json.dumps(results))


if __name__ == "__main__":
    main()
