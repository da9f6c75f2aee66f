"""When an explanation means little (ours)."""

from __future__ import annotations

from cmpagl_core.explain.relevance import Explanation
from cmpagl_core.runs import Run
from cmpagl_core.training.journal import read_journal
from cmpagl_core.training.monitor import matching_is_idle


def doubts(run: Run, explanation: Explanation) -> list[str]:
    """Reasons to distrust the relevance maps, one sentence each."""
    found = []
    if run.log_path.is_file() and matching_is_idle(read_journal(run.log_path)):
        found.append(f"{run.root.name}: its log shows ITM at chance, so relevance means little")
    if not any(word.share for word in explanation.words):
        found.append("no word has any relevance: all evidence is negative, or the run has a single fusion layer")
    return found
