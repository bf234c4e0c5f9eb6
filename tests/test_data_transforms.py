"""Transforms: one draw per clip, seeds that decide everything, global generators left alone."""

import random

import numpy as np
import pytest
import torch

from mae_dfer.data import ClipConfig
from mae_dfer.data.transforms import (
    FinetuneTransform,
    PretrainTransform,
    TestTransform,
    denormalize,
    normalize,
    resize,
    seeded,
    to_channels_first,
)
from mae_dfer.errors import UserError

T = 6


def finetune(size=(32, 32), **changes):
    settings = {
        "rand_augment": "",
        "crop_area": (0.08, 1.0),
        "crop_aspect": (3 / 4, 4 / 3),
        "flip_prob": 0.5,
        "erase_prob": 0.0,
    }
    return FinetuneTransform(size, **(settings | changes))


WHOLE = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0)}


def noise(height=40, width=40, frames=T, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (frames, 3, height, width), dtype=np.uint8)
    )


def still(height=40, width=40):
    return noise(height, width, 1).expand(T, -1, -1, -1).contiguous()


def all_transforms():
    config = ClipConfig(img_size=32, erase_prob=1.0)
    return [pytest.param(config.transform(mode), id=mode) for mode in ("pretrain", "finetune", "test")]


@pytest.mark.parametrize("transform", all_transforms())
def test_the_seed_decides_and_global_generators_stay(transform):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    one, two = transform(noise(), 5), transform(noise(), 5)
    assert one.shape == (3, T, 32, 32) and one.dtype == torch.float32 and one.is_contiguous()
    assert torch.equal(one, two)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    # nor do those states leak in
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert torch.equal(transform(noise(), 5), one)


def test_seeded_puts_generators_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(3):
        torch.rand(5)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("transform", all_transforms()[:2])
def test_different_seeds_give_different_clips(transform):
    clips = [transform(noise(), seed) for seed in range(6)]
    assert not any(torch.equal(clips[0], clip) for clip in clips[1:])


@pytest.mark.parametrize("rand_augment", ["", "rand-m7-n4-mstd0.5-inc1", "rand-m9-n2-p1"])
def test_a_still_clip_stays_still(rand_augment):
    transform = finetune(rand_augment=rand_augment)
    for seed in range(15):
        clip = transform(still(), seed)
        assert (clip == clip[:, :1]).all()


def test_rand_augment_changes_pixels_and_spends_draws():
    plain, augmented = finetune(**WHOLE), finetune(**WHOLE, rand_augment="rand-m9-n4-p1")
    assert all(not torch.equal(plain(still(), seed), augmented(still(), seed)) for seed in range(5))


def test_normalisation_matches_the_formula_and_undoes():
    frames = noise()
    clip = normalize(frames)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (frames.numpy().transpose(1, 0, 2, 3) / 255 - mean[:, None, None, None]) / std[
        :, None, None, None
    ]
    np.testing.assert_allclose(clip.numpy(), expected, atol=2e-6)
    assert torch.equal(denormalize(clip), frames)


def test_flip_mirrors_the_whole_clip():
    frames = noise(32, 32)
    plain, mirrored = finetune(**WHOLE, flip_prob=0.0), finetune(**WHOLE, flip_prob=1.0)
    assert torch.equal(plain(frames, 0), normalize(frames))
    assert torch.equal(mirrored(frames, 0), normalize(frames.flip(-1)))


def test_erasing_fills_one_box_per_clip_with_fresh_noise():
    plain, erasing = finetune(**WHOLE, flip_prob=0.0), finetune(**WHOLE, flip_prob=0.0, erase_prob=1.0)
    for seed in range(8):
        changed = plain(still(), seed) != erasing(still(), seed)
        where = changed.all(dim=0).all(dim=0)
        assert torch.equal(changed.any(dim=0).any(dim=0), where)  # the same pixels in all frames and channels
        rows, columns = where.any(dim=1).sum(), where.any(dim=0).sum()
        assert where.sum() == rows * columns  # one full rectangle
        assert 0.01 < where.float().mean() < 0.4
        filled = erasing(still(), seed)[:, :, where]
        assert not torch.equal(filled[:, 0], filled[:, 1])


def test_erasing_happens_as_often_as_asked():
    plain, erasing = finetune(**WHOLE, flip_prob=0.0), finetune(**WHOLE, flip_prob=0.0, erase_prob=0.25)
    erased = sum(not torch.equal(plain(still(), seed), erasing(still(), seed)) for seed in range(200))
    assert 25 <= erased <= 75


def ramp(height, width):
    """Red says the column, green the row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return torch.from_numpy(np.stack([columns, rows, rows * 0])[None]).repeat(T, 1, 1, 1)


def extent(clip):
    """(rows, columns) of the source that a transformed ramp shows."""
    red, green, _ = denormalize(clip)[0].float()
    return float(green.max() - green.min()) + 1, float(red.max() - red.min()) + 1


def test_multi_scale_crops_have_the_listed_sizes_at_thirteen_places():
    transform = PretrainTransform((100, 100), (1.0, 0.5))
    seen = {extent(transform(ramp(100, 100), seed)) for seed in range(60)}
    sizes = {(round(a / 50) * 50, round(b / 50) * 50) for a, b in seen}
    assert sizes == {(100, 100), (100, 50), (50, 100), (50, 50)}
    half = PretrainTransform((50, 50), (0.5,))
    corners = {tuple(denormalize(half(ramp(100, 100), seed))[0, :2, 0, 0].tolist()) for seed in range(300)}
    steps = (0, 12, 24, 36, 48)  # of 50 // 4 pixels: the last two columns and rows are never reached
    on_grid = {(steps[i], steps[j]) for i in range(5) for j in range(5) if i % 2 == j % 2}
    assert corners == on_grid


def test_a_crop_within_two_pixels_of_the_output_is_made_its_size_where_the_frame_has_room():
    def sides(size, side):
        transform = PretrainTransform((size, size), (1.0, 0.5))
        with seeded(0):
            return {transform.draw_box(side, side)[2] for _ in range(50)}

    assert sides(size=52, side=100) == {100, 52}
    assert sides(size=53, side=100) == {100, 50}
    assert sides(size=102, side=100) == {100, 50}  # the published code pads here


def test_scales_of_a_crop_are_at_most_one_step_apart():
    transform = PretrainTransform((100, 100), (1.0, 0.75, 0.5))
    for seed in range(60):
        rows, columns = extent(transform(ramp(100, 100), seed))
        assert abs(rows - columns) < 30


def test_the_face_box_is_cut_first():
    transform = PretrainTransform((160, 160), (1.0,), face_box=(0, 32, 160, 160))
    frames = ramp(224, 224)
    assert torch.equal(transform(frames, 0), normalize(frames[..., 0:160, 32:192]))
    with pytest.raises(UserError, match="face_box"):
        transform(ramp(100, 100), 0)
    for box in ((0, 32, 0, 0), (-1, 0, 10, 10)):
        with pytest.raises(UserError, match="face_box must be"):
            PretrainTransform((160, 160), (1.0,), face_box=box)


def test_a_squeezed_video_is_cropped_as_test_shows_it():
    """The crop that takes the whole square takes the whole frame, whatever the aspect of the video."""
    frames = noise(24, 60)
    transform = finetune(**WHOLE, flip_prob=0.0, exact=True)
    assert torch.equal(transform(frames, 0), TestTransform((32, 32))(frames, 0))


def test_random_crops_cover_the_range_and_stay_inside():
    transform = finetune((50, 50), flip_prob=0.0, crop_area=(0.25, 1.0))
    shares = []
    for seed in range(120):
        rows, columns = extent(transform(ramp(100, 100), seed))
        shares.append(rows * columns / 1e4)
    assert 0.2 < min(shares) < 0.35 and 0.85 < max(shares) <= 1.0


def test_one_pixel_videos_do_not_break_the_crop():
    assert finetune()(noise(1, 3), 0).shape == (3, T, 32, 32)
    assert PretrainTransform((32, 32), (0.66,))(noise(1, 3), 0).shape == (3, T, 32, 32)


def test_resize_is_antialiased():
    checker = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8).repeat(32, 32).expand(1, 3, 64, 64)
    small = resize(checker.contiguous(), (8, 8)).float()
    assert (small - 127.5).abs().max() < 12


def test_read_only_frames_are_accepted():
    frames = np.zeros((T, 8, 8, 3), np.uint8)
    frames.flags.writeable = False
    assert to_channels_first(frames).shape == (T, 3, 8, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"rand_augment": "rand-mm7"},
        {"rand_augment": "augmix-m5"},
        {"flip_prob": 1.5},
        {"erase_prob": -0.1},
        {"crop_area": (0.5, 0.1)},
        {"crop_aspect": (0.0, 1.0)},
        {"crop_scales": ()},
        {"crop_scales": (1.2,)},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings):
    config = ClipConfig(**settings)
    with pytest.raises(UserError):
        config.transform("pretrain"), config.transform("finetune")
