"""Frame indices against examples worked by hand."""

import numpy as np
import pytest

from mae_dfer.data import sampling
from mae_dfer.data.sampling import finetune_indices, pretrain_indices, window_indices, window_starts
from mae_dfer.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


def test_pretraining_takes_frames_at_the_stride_from_every_possible_start():
    # 4 frames at stride 3 take a window of 12: a video of 14 has starts 0, 1, 2.
    clips = {tuple(pretrain_indices(14, 4, 3, rng(seed))) for seed in range(60)}
    assert clips == {(0, 3, 6, 9), (1, 4, 7, 10), (2, 5, 8, 11)}


def test_pretraining_repeats_the_last_frame_reached_in_a_short_video():
    assert pretrain_indices(9, 5, 3, rng()).tolist() == [0, 3, 6, 6, 6]
    assert pretrain_indices(7, 4, 3, rng()).tolist() == [0, 3, 3, 3]  # 6 is the last frame, which is not stepped on


def test_finetuning_spaces_indices_evenly_over_the_window():
    # The window of 16 · 4 = 64 frames: linspace(0, 64, 16) steps by 4.2667, truncated, the end kept inside.
    expected = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    assert finetune_indices(64, 16, 4, rng()).tolist() == expected
    # The window that ends with the video, a = 2 here, is never drawn.
    starts = {tuple(finetune_indices(66, 16, 4, rng(seed))) for seed in range(60)}
    assert starts == {tuple(i + a for i in expected) for a in range(2)}


def test_finetuning_spreads_a_short_video_then_repeats_its_last_frame():
    # 10 // 4 = 2 indices: linspace(0, 10, 2), the end kept inside.
    assert finetune_indices(10, 6, 4, rng()).tolist() == [0, 9, 9, 9, 9, 9]
    assert finetune_indices(14, 6, 4, rng()).tolist() == [0, 7, 13, 13, 13, 13]
    assert finetune_indices(3, 6, 4, rng()).tolist() == [2] * 6


def test_finetuning_at_stride_one():
    # FERV39k: linspace(0, 4, 4) = 0, 1.33, 2.67, 4 -> 0, 1, 2 and the end kept inside the window.
    assert finetune_indices(4, 4, 1, rng()).tolist() == [0, 1, 2, 3]


def test_test_segments_start_where_the_formula_says():
    # 90 frames at stride 4: 0, 4, …, 88 = 23 frames; 7 spare; 3 segments start at int(0), int(3.5), int(7).
    clips = sampling.test_indices(90, 16, 4, 3)
    assert [clip[0] for clip in clips] == [0, 12, 28]
    assert clips[2][-1] == 88
    assert all((np.diff(clip) == 4).all() and len(clip) == 16 for clip in clips)


def test_test_pads_with_the_last_strided_frame_and_segments_coincide():
    clips = sampling.test_indices(11, 5, 4, 2)
    assert [clip.tolist() for clip in clips] == [[0, 4, 8, 8, 8]] * 2


def test_a_single_test_segment_is_the_middle():
    assert sampling.test_indices(20, 4, 2, 1)[0].tolist() == [6, 8, 10, 12]


def test_prediction_windows_see_the_whole_video():
    # Windows of 4 frames at stride 2 span 7.
    assert window_starts(30, 4, 2) == [0, 8, 16, 23]
    assert window_starts(15, 4, 2) == [0, 8]
    assert window_starts(7, 4, 2) == [0]
    assert window_starts(3, 4, 2) == [0]
    assert window_starts(30, 4, 2, hop=20) == [0, 20, 23]
    assert window_indices(30, 23, 4, 2).tolist() == [23, 25, 27, 29]
    assert window_indices(3, 0, 4, 2).tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 63, 64, 65, 300])
@pytest.mark.parametrize("stride", [1, 4])
def test_indices_stay_inside_and_never_go_back(num_frames, stride):
    clips = [
        pretrain_indices(num_frames, 16, stride, rng()),
        finetune_indices(num_frames, 16, stride, rng()),
        *sampling.test_indices(num_frames, 16, stride, 3),
    ]
    for clip in clips:
        assert clip.dtype == np.int64 and clip.shape == (16,)
        assert clip.min() >= 0 and clip.max() < num_frames
        assert (np.diff(clip) >= 0).all()


def test_a_single_image_is_repeated():
    assert finetune_indices(1, 4, 4, rng()).tolist() == [0] * 4


@pytest.mark.parametrize("call", [(0, 16, 4), (10, 0, 4), (10, 16, 0)])
def test_impossible_numbers_are_refused(call):
    with pytest.raises(UserError):
        window_indices(call[0], 0, *call[1:])
    with pytest.raises(UserError):
        sampling.test_indices(*call, 2)
    with pytest.raises(UserError, match="segments"):
        sampling.test_indices(10, 16, 4, 0)
