"""A few trials of the fuzzers of runs, always the same; `make fuzz` has the long ones."""

from __future__ import annotations

import signal
import time

import signals
from runs import VARIANTS, Run, faults, site, traffic


def test_a_run_that_is_killed_leaves_nothing_attached_and_a_file_that_can_be_read(capsys):
    assert signals.fuzz(len(VARIANTS), 1, list(VARIANTS), kill=True, seconds=0.7) == 0, capsys.readouterr().out


def test_signals_that_go_on_while_a_run_ends_change_nothing_of_what_it_leaves():
    with site() as (left, right, folder), traffic(left, right):
        run = Run(VARIANTS["file"], right, folder)
        try:
            while not run.ready():
                assert run.process.poll() is None, run.err.read_text()
                time.sleep(0.005)
            while run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)
                time.sleep(0.005)
            ended = run.wait()
        finally:
            run.kill()
    assert ended.status in (0, 128 + signal.SIGINT)
    assert faults(ended, whole=True) == []


def test_signals_at_moments_of_start_up_and_of_the_run_end_it_in_order(capsys):
    assert signals.fuzz(len(VARIANTS), 11, list(VARIANTS), kill=False, seconds=0.7) == 0, capsys.readouterr().out
