"""The dropout mask that every backend draws: its generator, and its statistics."""

from __future__ import annotations

import pytest
import torch

from mae_dfer_kernels.reference import dropout


# Known answers of Random123's kat_vectors for philox4x32-10.
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    result = dropout._philox([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in result) == words


def test_dropout_keeps_the_asked_share_without_pattern() -> None:
    for dropout_p in (0.1, 0.5, 0.9):
        keep = dropout.dropout_keep_mask(8, 4, 64, dropout_p, seed=11).double()
        count, share = keep.numel(), 1 - dropout_p
        deviation = (share * dropout_p) ** 0.5
        assert abs(keep.mean().item() - share) < 5 * deviation / count**0.5
        for axis in range(4):
            other_axes = [a for a in range(4) if a != axis]
            means = keep.mean(dim=other_axes)
            assert (means - share).abs().max() < 5 * deviation / (count / len(means)) ** 0.5
        neighbours = ((keep[..., 1:] - share) * (keep[..., :-1] - share)).mean()
        assert abs(neighbours.item()) < 5 * deviation**2 / count**0.5
    first, second = (dropout.dropout_keep_mask(2, 2, 64, 0.5, seed) for seed in (1, 2))
    assert 0.45 < (first == second).double().mean().item() < 0.55


def test_dropout_with_a_tiny_probability_drops_nothing() -> None:
    assert dropout.dropout_threshold(0.0) == 0
    assert dropout.dropout_threshold(1 - 1e-12) == 2**32 - 1
    assert dropout.dropout_keep_mask(2, 2, 16, 1e-12, seed=5).all()
