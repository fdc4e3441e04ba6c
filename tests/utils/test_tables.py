"""Names that a spreadsheet would run as formulas are text in tables, and come back unchanged."""

import pytest

from viewalign.utils.tables import cell_text, text_of


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1+1", "'\t=1+1"),
        ("'=1+1", "''=1+1"),
        ("-1.5", "-1.5"),
        ("+3", "+3"),
        ("patient 1", "patient 1"),
        ("'quoted'", "'quoted'"),
        ("", ""),
    ],
)
def test_formulas_become_text_and_come_back(text, written):
    assert cell_text(text) == written
    assert text_of(written) == text
