"""Cards by name and by size."""

import pytest

from dorakit.errors import UsageError
from dorakit.plan.device import card


@pytest.mark.parametrize("asked", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "24GB", "24 GiB", "24"])
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
