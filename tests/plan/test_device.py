"""Cards by name and by size."""

import pytest

from dorakit.errors import UsageError
from dorakit.plan.device import card


@pytest.mark.parametrize("asked", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "24GB", "24 GiB", "24g", "4090"])
def test_a_card_as_people_write_it(asked):
    """Dies of GB read as 10^9 bytes, and of a name compared letter by letter."""
    assert card(asked).memory == 24 << 30
    assert card(asked).has_bfloat16 and card(asked).room < 23 << 30


def test_an_old_card_computes_in_float32():
    """Dies of bfloat16 planned for a card that has none, at half of the bytes."""
    assert not card("T4").has_bfloat16


def test_an_unknown_card_lists_the_known():
    """Dies of an error that leaves one guessing."""
    with pytest.raises(UsageError, match=r"RTX 9999.*\n.*--gpu 24GB.*RTX 4090.*H100"):
        card("RTX 9999")


@pytest.mark.parametrize("asked", ["24", "4", "40", "9999", "24.0"])
def test_a_number_needs_a_unit(asked):
    """Dies of 9999 read as so many GiB, of 40 read as an L40S, and of the first of several cards taken."""
    with pytest.raises(UsageError, match=rf"--gpu '{asked}' is a number without a unit\n.*--gpu 24GB.*RTX 4090"):
        card(asked)


@pytest.mark.parametrize("asked", ["0GB", "1025GB", "4090GB"])
def test_a_memory_that_no_card_has(asked):
    """Dies of a card of 4,090 GiB, which everything fits."""
    with pytest.raises(UsageError, match=rf"--gpu '{asked}' is no card's memory\n.*at most 1024GB"):
        card(asked)
