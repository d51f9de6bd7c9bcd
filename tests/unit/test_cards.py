"""The cards that plans are made for: how they are found, and that their figures hang together."""

import pytest

from tunestation.training import cards


@pytest.mark.parametrize(
    ("device", "gib", "name"),
    [
        ("NVIDIA GeForce RTX 4090", 23.6, "rtx4090"),
        ("NVIDIA GeForce RTX 3060", 11.75, "rtx3060"),
        ("NVIDIA GeForce RTX 4060 Ti", 15.6, "rtx4060-ti"),
        ("NVIDIA GeForce RTX 4080", 15.99, "rtx4080"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "a100-40"),
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA H100 80GB HBM3", 79.2, "h100"),
        ("NVIDIA H100 PCIe", 79.1, "h100-pcie"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA A40", 44.4, "a40"),
        ("NVIDIA RTX A6000", 47.5, "a6000"),
    ],
)
def test_a_card_is_found_by_what_it_calls_itself(device, gib, name):
    assert cards.named(device, gib).name == name


@pytest.mark.parametrize(
    ("device", "gib"),
    [
        ("NVIDIA GeForce GTX 980", 4),
        ("NVIDIA L40", 44.4),
        ("NVIDIA RTX 6000 Ada Generation", 47.4),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6),
        ("NVIDIA GeForce RTX 4060 Ti", 7.6),
        ("NVIDIA GeForce RTX 3060 Ti", 7.8),
        ("NVIDIA H100 NVL", 93.1),
    ],
)
def test_a_card_with_other_figures_is_not_taken_for_one_that_is_known(device, gib):
    assert cards.named(device, gib) is None


@pytest.mark.parametrize("card", cards.CARDS.values(), ids=lambda card: card.name)
def test_eight_bits_are_twice_as_fast_as_sixteen_and_memory_is_less_than_is_sold(card):
    assert card.rate_8 is None or card.rate_8 == pytest.approx(2 * card.rate, rel=0.02)
    sold = min(size for size in (12, 16, 24, 32, 40, 48, 80, 141) if size >= card.memory)
    assert 0.9 * sold < card.memory < sold


@pytest.mark.parametrize("text", ["rtx4090", "RTX 4090", "NVIDIA GeForce RTX 4090", "geforce rtx4090"])
def test_a_card_may_be_called_as_its_maker_does(text):
    assert cards.chosen(text).name == "rtx4090"
