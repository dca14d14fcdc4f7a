"""A few trials of the fuzzers of runs, always the same; `make fuzz` has the long ones."""

from __future__ import annotations

import signals
from runs import VARIANTS


def test_a_run_that_is_killed_leaves_nothing_attached_and_a_file_that_can_be_read(capsys):
    assert signals.fuzz(len(VARIANTS), 1, list(VARIANTS), kill=True, seconds=0.7) == 0, capsys.readouterr().out
