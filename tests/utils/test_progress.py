"""Messages and progress: hidden in a script, shown by the command line, fewer with -q and more with -v."""

import io
import logging
import sys

import pytest

import viewalign
from viewalign.cli.main import run
from viewalign.training.logs import PROGRESS, log_file
from viewalign.utils import progress
from viewalign.utils.console import ProgressLine

LOGGER = logging.getLogger("viewalign.test")


def test_a_script_sees_no_bars(capsys):
    with progress.progress_bar("Preparing") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        (logging.DEBUG, ["detail", "note", "viewalign: warning"]),
        (logging.INFO, ["note", "viewalign: warning"]),
        (logging.WARNING, ["viewalign: warning"]),
    ],
)
def test_messages_by_level(level, lines, capsys):
    viewalign.show_progress(level)
    viewalign.show_progress(level)  # a second call shows nothing twice
    LOGGER.debug("detail")
    LOGGER.info("note")
    LOGGER.warning("warning")
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, True), (logging.WARNING, False)])
def test_bars_and_the_progress_line_by_level(level, shown, capsys, monkeypatch):
    monkeypatch.setattr("viewalign.utils.console.SECONDS_BETWEEN_LINES", 0.0)
    viewalign.show_progress(level)
    with progress.progress_bar("Preparing") as bar:
        bar(1, 2)
    assert ("Preparing: 1 of 2" in capsys.readouterr().err) == shown
    assert progress.shows_line() == shown


def test_other_processes_of_a_run_show_nothing(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    viewalign.show_progress()
    LOGGER.info("note")
    assert "note" not in capsys.readouterr().err
    assert not progress.shows_line()


@pytest.mark.parametrize(("flag", "text"), [("-q", False), ("-v", True), ("--verbose", True)])
def test_every_command_has_the_flags(flag, text, capsys):
    with pytest.raises(SystemExit):
        run(["embed", "nothing", "nowhere", "-o", "x.npz", flag])
    written = capsys.readouterr().err
    assert ("Traceback" in written) == text
    assert "no task at nowhere" in written


def test_a_message_is_written_above_the_progress_line(capsys):
    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    terminal = Terminal()
    viewalign.show_progress()
    with ProgressLine(terminal) as line:
        line.show("step 1")
        LOGGER.info("note")
        line.show("step 2")
    assert terminal.text == "\rstep 1\r      \rnote\n\rstep 2\n"
    LOGGER.info("later")
    assert capsys.readouterr().err == "later\n"


@pytest.mark.parametrize("plain", [False, True])
def test_a_warning_is_marked_and_a_long_line_is_cut_to_the_terminal(monkeypatch, plain):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1" if plain else "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    viewalign.show_progress()
    with ProgressLine(terminal) as line:
        line.show("x" * 100)
        LOGGER.warning("odd \x1b[2J name")
    mark = "viewalign:" if plain else "\x1b[33m\x1b[1mviewalign:\x1b[0m"
    assert terminal.getvalue() == "\r" + "x" * 39 + "\r" + " " * 39 + f"\r{mark} odd \\x1b[2J name\n"


def test_a_run_writes_messages_and_progress_into_its_own_file(tmp_path):
    for text in ("first", "second"):
        with log_file(tmp_path / "run.log", first=True):
            LOGGER.info(text)
            PROGRESS.info("step 1/2")
        LOGGER.info("outside")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(maxsplit=3)[2:] for line in lines] == [
        ["INFO", "first"],
        ["INFO", "step 1/2"],
        ["INFO", "second"],
        ["INFO", "step 1/2"],
    ]


def test_a_full_disk_costs_a_run_its_file_and_nothing_else(capsys):
    with log_file("/dev/full", first=True):
        LOGGER.info("lost")
    assert capsys.readouterr().err == ""


def test_warnings_reach_a_quiet_console_during_a_training(capsys):
    viewalign.show_progress(logging.WARNING)
    with ProgressLine(quiet=True) as line:
        line.show("step 1")
        LOGGER.warning("warning")
    assert capsys.readouterr().err == "viewalign: warning\n"
