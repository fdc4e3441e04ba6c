"""The most important error messages, compared with messages.txt. Other tests assert messages by their key only."""

import runpy
from pathlib import Path

import pytest

PROVOKE = runpy.run_path(str(Path(__file__).with_name("provoke.py")))


@pytest.mark.parametrize("name", PROVOKE["CASES"])
def test_a_message_is_as_stored(name, tmp_path):
    hint = "if the new wording is intended: python tests/messages/provoke.py"
    assert PROVOKE["message"](name, tmp_path) == PROVOKE["stored"]().get(name), hint


def test_no_stored_message_is_left_over():
    assert list(PROVOKE["stored"]()) == list(PROVOKE["CASES"])


def test_messages_have_a_readable_length():
    for name, text in PROVOKE["stored"]().items():
        assert 20 < len(text) < 300, name
