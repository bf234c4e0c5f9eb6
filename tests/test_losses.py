"""Targets against loops over pixels; the loss's weights; predictions turned back into frames."""

import numpy as np
import pytest
import torch

from mae_dfer import losses
from mae_dfer.errors import UserError
from mae_dfer.losses import IMAGENET_MEAN, IMAGENET_STD, reconstruction_loss, reconstruction_targets


def make_clip(frames=4, height=32, width=16, batch=2, seed=0):
    """Pixels in [0, 1] and their ImageNet-normalised clip, float64."""
    pixels = torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)).double()
    mean, std = (torch.tensor(values).double().view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return pixels, (pixels - mean) / std


def make_mask(batch, tokens, masked, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(batch, tokens, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(tokens, generator=generator)[:masked]] = True
    return mask


def target_by_loops(pixels, token, patch, tubelet):
    """One clip's target of one token, pixel by pixel: pixels (3, frames, height, width)."""
    columns, rows = pixels.shape[3] // patch, pixels.shape[2] // patch
    t, h, w = token // (rows * columns), token // columns % rows, token % columns
    block = pixels.numpy()[:, t * tubelet :, h * patch :, w * patch :][:, :tubelet, :patch, :patch]
    values = np.empty((tubelet, patch, patch, 3))
    for channel in range(3):
        mean, std = block[channel].mean(), block[channel].std(ddof=1)
        for frame in range(tubelet):
            for row in range(patch):
                for column in range(patch):
                    value = (block[channel, frame, row, column] - mean) / (std + 1e-6)
                    values[frame, row, column, channel] = value
    for frame in range(1, tubelet):
        values[frame] -= values[0]
    return torch.from_numpy(values.reshape(-1))


@pytest.mark.parametrize(("patch", "tubelet"), [(8, 2), (16, 2), (8, 4)], ids=["patch8", "patch16", "tubelet4"])
def test_targets_match_loops(patch, tubelet):
    pixels, clip = make_clip()
    tokens = (4 // tubelet) * (32 // patch) * (16 // patch)
    mask = make_mask(2, tokens, tokens // 2)
    target = reconstruction_targets(clip, mask, patch, tubelet)
    assert target.shape == (2, tokens // 2, tubelet * patch * patch * 3)
    for index in range(2):
        for row, token in enumerate(mask[index].nonzero().flatten().tolist()):
            expected = target_by_loops(pixels[index], token, patch, tubelet)
            torch.testing.assert_close(target[index, row], expected, rtol=1e-9, atol=1e-9)


def test_a_flat_patch_has_a_finite_target():
    clip = torch.zeros(1, 3, 2, 16, 32)
    target = reconstruction_targets(clip, torch.tensor([[True, False]]))
    # Its deviation is 0: what is left of rounding is divided by 1e-6, not by 0.
    assert target.abs().max() < 1


def test_loss_weighs_appearance_and_motion():
    generator = torch.Generator().manual_seed(1)
    pred, target = torch.randn(2, 2, 5, 1536, generator=generator).double()
    appearance = (pred - target)[..., :768].square().mean()
    motion = (pred - target)[..., 768:].square().mean()
    torch.testing.assert_close(reconstruction_loss(pred, target), (pred - target).square().mean())
    torch.testing.assert_close(reconstruction_loss(pred, target, 0.8), 0.8 * appearance + 0.2 * motion)
    torch.testing.assert_close(reconstruction_loss(pred, target, 1.0), appearance)


def test_appearance_of_a_long_tubelet_is_its_first_frame():
    pred, target = torch.zeros(1, 1, 4 * 12), torch.zeros(1, 1, 4 * 12)
    target[..., :12] = 3.0
    assert [value.item() for value in losses.reconstruction_loss_terms(pred, target, tubelet_size=4)] == [
        9.0,
        0.0,
    ]


def test_half_precision_predictions_give_a_float32_loss():
    pred, target = torch.full((1, 1, 1536), 300.0, dtype=torch.float16), torch.zeros(1, 1, 1536)
    loss = reconstruction_loss(pred, target)
    assert loss.dtype == torch.float32 and loss.item() == 90000.0  # above float16's largest number


@pytest.mark.parametrize("tubelet", [2, 4])
def test_true_targets_reconstruct_the_input(tubelet):
    pixels, clip = make_clip()
    mask = make_mask(2, 4 // tubelet * 8, 5)
    frames = losses.reconstruct_frames(clip, mask, reconstruction_targets(clip, mask, 8, tubelet), 8, tubelet)
    torch.testing.assert_close(frames["input"], pixels)
    torch.testing.assert_close(frames["reconstruction"], pixels)
    first = pixels[:, :, ::tubelet].repeat_interleave(tubelet, dim=2)
    torch.testing.assert_close(frames["motion"], 0.5 + 0.5 * (pixels - first))


def test_pictures_differ_from_the_input_behind_the_mask_alone():
    pixels, clip = make_clip(frames=2)
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 3] = mask[1, 6] = True  # rows of two patches: token 3 is row 1, column 1; token 6 is row 3, column 0
    frames = losses.reconstruct_frames(clip, mask, torch.zeros(2, 1, 2 * 64 * 3), 8)
    expected = pixels.clone()
    for index, rows, columns in ((0, slice(8, 16), slice(8, 16)), (1, slice(24, 32), slice(0, 8))):
        block = pixels[index, :, :, rows, columns]
        expected[index, :, :, rows, columns] = block.mean(dim=(1, 2, 3), keepdim=True)
        assert (frames["masked"][index, :, :, rows, columns] == 0.5).all()
        frames["masked"][index, :, :, rows, columns] = block
    torch.testing.assert_close(frames["reconstruction"], expected)
    torch.testing.assert_close(frames["masked"], pixels)


def test_wild_predictions_stay_in_range():
    _, clip = make_clip(frames=2)
    mask = make_mask(2, 8, 4)
    for value in losses.reconstruct_frames(clip, mask, torch.full((2, 4, 2 * 64 * 3), 1e3), 8).values():
        assert value.min() >= 0 and value.max() <= 1


MASK = make_mask(2, 16, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask": MASK.int()}, "bool"),
        ({"mask": MASK[:, 1:]}, r"\(2, 16\)"),
        ({"mask": torch.arange(16) < torch.tensor([[8], [9]])}, r"\[8, 9\]"),
        ({"mask": torch.zeros(2, 16, dtype=torch.bool)}, r"\[0, 0\]"),
        ({"tubelet_size": 1}, "at least 2"),
        ({"tubelet_size": 3}, "do not divide"),
        ({"patch_size": 7}, "patches of 7"),
        ({"clip": torch.zeros(2, 1, 4, 32, 16)}, r"\(2, 1, 4, 32, 16\)"),
    ],
)
def test_what_does_not_fit_is_named(arguments, words):
    given = {
        "clip": torch.zeros(2, 3, 4, 32, 16),
        "mask": MASK,
        "patch_size": 8,
        "tubelet_size": 2,
    } | arguments
    with pytest.raises(UserError, match=words):
        reconstruction_targets(**given)


def test_loss_refuses_what_it_cannot_mean():
    target = torch.zeros(1, 2, 1536)
    with pytest.raises(UserError, match=r"\(1, 1, 1536\).*\(1, 2, 1536\)"):
        reconstruction_loss(target[:, :1], target)
    with pytest.raises(UserError, match="appearance_weight"):
        reconstruction_loss(target, target, 1.5)
    with pytest.raises(UserError, match="5 frames"):
        reconstruction_loss(target, target, tubelet_size=5)
    with pytest.raises(UserError, match="does not fit 8 masked patches of 384 values"):
        losses.reconstruct_frames(torch.zeros(2, 3, 4, 32, 16), MASK, torch.zeros(2, 8, 383), 8)
