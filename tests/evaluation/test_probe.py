"""What a probe checks before it computes features."""

import pytest

from viewalign.errors import UserError
from viewalign.evaluation import probe
from viewalign.evaluation.settings import ProbeSettings


def test_names_are_checked_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(probe, "read_pretrained", None)
    for names, sentence in (((), "Two encoders are called 'run'"), (("a", "b", "c"), "3 names for 2 encoders")):
        with pytest.raises(UserError, match=sentence):
            probe._compute_features(["first/run", "second/run"], None, [], ProbeSettings(names=names))
