import pytest

from viewalign.utils.text import counted, short_count, size_text


def test_one_is_singular_and_every_other_count_is_plural():
    assert [counted(count, "image") for count in (0, 1, 2, 12345)] == [
        "0 images",
        "1 image",
        "2 images",
        "12,345 images",
    ]
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(2, "entry", "entries") == "2 entries"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (850, "850"), (999, "999"), (1000, "1 k"), (12_345, "12.3 k"), (999_949, "1 M"), (101_800_000, "102 M"),
     (1_234_000_000, "1.23 G")],
)  # fmt: skip
def test_large_counts_have_a_unit_and_no_small_one_is_zero(count, text):
    assert short_count(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (34_000, "34.0 kB"), (999_960, "1.0 MB"), (2e8, "200.0 MB"),
     (25_400_000_000, "25.4 GB"), (7e15, "7000.0 TB")],
)  # fmt: skip
def test_sizes_have_a_unit_that_fits(count, text):
    assert size_text(count) == text
