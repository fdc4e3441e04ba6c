"""Progress in a log: a line in ten seconds, and the time left by what is seen after the start."""

import pytest

from viewalign.utils import console


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


def told(capsys):
    return capsys.readouterr().err.splitlines()


def test_the_time_of_starting_up_is_not_taken_for_the_time_of_an_item(clock, capsys):
    with console.console_bar("Making images") as report:
        clock.now += 12  # imports
        report(1, 34)
        for done in range(2, 20):
            clock.now += 1
            report(done, 34)
    assert told(capsys) == ["Making images: 1 of 34", "Making images: 11 of 34, 23 s left"]


def test_what_was_done_before_is_not_taken_for_fast_work(clock, capsys):
    with console.console_bar("Preparing", note=lambda: "3 refused") as report:
        report(900, 1000)
        clock.now += 20
        report(910, 1000)
    assert told(capsys) == ["Preparing: 910 of 1000, 3 min 00 s left, 3 refused"]


def test_lines_are_few(clock, capsys):
    with console.console_bar("Preparing") as report:
        for done in range(100):
            clock.now += 0.5
            report(done, 100)
    assert len(told(capsys)) == 5


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations_read_well(seconds, text):
    assert console.duration(seconds) == text
