"""The log of a training is read whatever became of the training."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmpagl_core.errors import DataError
from cmpagl_core.training.journal import Journal, read_journal


def test_a_line_that_a_kill_tore_is_left_out_of_the_log(tmp_path: Path) -> None:
    with Journal(tmp_path / "log.jsonl") as journal:
        journal.write("step", step=1)
        journal.write("warning", text="d\u00e9j\u00e0")
    whole = (tmp_path / "log.jsonl").read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        (tmp_path / "log.jsonl").write_bytes(whole[:end])
        assert [event["event"] for event in read_journal(tmp_path / "log.jsonl")] == ["step"]
    (tmp_path / "log.jsonl").write_bytes(b"[}\n" + whole)
    with pytest.raises(DataError, match=r"log\.jsonl:1: not valid JSON"):
        list(read_journal(tmp_path / "log.jsonl"))
