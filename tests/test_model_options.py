"""Model options: to JSON and back, and one line for what does not fit: options, clips, masks."""

import json

import pytest
import torch

from mae_dfer import create_model
from mae_dfer.errors import UserError
from mae_dfer.models import ModelConfig

LGI, VIT = "lgi_former_tiny_patch16_160", "vit_tiny_patch16_160"
# Token grid (2, 2, 4); regions of 1 × 2 × 2 tokens: 4 of them, narrower than the grid.
SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def make(name=LGI, **overrides):
    region = {"region_size": (1, 2, 2)} if "lgi" in name else {}
    return create_model(name, **SIZES | region | overrides)


def on_meta(name, **overrides):
    with torch.device("meta"):
        return create_model(name, **overrides)


def make_mask(visible):
    """A clip's mask (1, tokens) from the raster indices of its visible tokens."""
    mask = torch.ones(1, 16, dtype=torch.bool)
    mask[0, visible] = False
    return mask


def test_config_survives_json():
    model = make("mae_" + LGI, share_attention="all", decoder_positions="published")
    config = ModelConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert config == model.config
    settings = make(pool="local").config.to_dict()
    again = create_model(settings.pop("name"), **settings)
    assert again.config == make(pool="local").config
    with pytest.raises(UserError, match="'depht'.*'depth'"):
        ModelConfig.from_dict(model.config.to_dict() | {"depht": 3})
    with pytest.raises(UserError, match="name"):
        ModelConfig.from_dict({"depth": 3})


def test_one_image_size_is_a_square():
    config = on_meta(LGI, img_size=80, region_size=(2, 5, 5)).config
    assert config.img_size == (80, 80) and config.grid_size == (8, 5, 5) and config.num_regions == 4


def test_larger_clips():
    model = on_meta(LGI, img_size=224, num_frames=32, region_size=[4, 7, 14]).eval()
    assert model(torch.empty(1, 3, 32, 224, 224, device="meta")).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("lgi_formr_base_patch16_160", {}, "did you mean 'lgi_former_base_patch16_160'"),
        (LGI, {"num_head": 2}, "did you mean 'num_heads'"),
        (LGI, {"decoder_depth": 2}, "unknown model option 'decoder_depth'"),
        (LGI, {"exchange": "cros"}, "did you mean 'cross'"),
        (LGI, {"region_size": (2, 4, 10)}, r"\(8, 10, 10\).*t 1/2/4/8, h 1/2/5/10, w 1/2/5/10"),
        (LGI, {"img_size": 224}, r"region_size \(2, 5, 10\) does not divide .*\(8, 14, 14\)"),
        (LGI, {"region_size": (2, 5)}, "3 whole numbers"),
        (LGI, {"img_size": (160, 150)}, "width 150 is not a multiple of patch_size 16; take 144 or 160"),
        (LGI, {"num_frames": 15}, "take 14 or 16"),
        (LGI, {"embed_dim": 101}, "take 100 or 102"),
        (LGI, {"depth": 0}, "depth must be positive"),
        (LGI, {"depth": 2.5}, "depth must be a whole number"),
        (LGI, {"fused_attn": "yes"}, "fused_attn must be True or False"),
        (LGI, {"drop_rate": 1.0}, "below 1"),
        (LGI, {"share_attention": "local_exchange", "exchange": "none"}, "nothing to share"),
        (LGI, {"share_attention": "all", "exchange": "none", "global_attention": False}, "nothing to share"),
        (VIT, {"exchange": "self"}, "option of lgi_former"),
        (VIT, {"pool": "representative"}, "averages 'all'"),
        ("mae_" + LGI, {"decoder_positions": "publish"}, "did you mean 'published'"),
        ("mae_" + LGI, {"decoder_num_heads": 3}, "decoder_embed_dim 128 is not a multiple"),
        ("mae_" + LGI, {"tubelet_size": 1}, "motion target"),
    ],
)
def test_options_that_do_not_fit_are_named(name, overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        create_model(name, **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape",
    [(2, 1, 4, 32, 64), (2, 3, 8, 32, 64), (2, 3, 4, 64, 32), (3, 4, 32, 64)],
    ids=["channels", "frames", "size", "unbatched"],
)
def test_clips_of_another_shape_are_refused(shape):
    words = rf"3 channels, 4 frames, 32 rows, 64 columns\), got \({shape[0]}, {shape[1]}, "
    with pytest.raises(UserError, match=words):
        make()(torch.zeros(shape))
    with pytest.raises(UserError, match=words):
        make("mae_" + LGI)(torch.zeros(shape), make_mask([0]))


@pytest.mark.parametrize(
    ("name", "mask", "words"),
    [
        ("mae_" + LGI, make_mask([0, 1, 8, 15]), r"every region, but clip 0 has \[2, 0, 1, 1\]"),
        (
            "mae_" + LGI,
            torch.cat((make_mask([1, 2, 8, 15]), make_mask(range(16)))),
            r"clip 1 has \[4, 4, 4, 4\]",
        ),
        ("mae_" + LGI, make_mask([]), r"\[0, 0, 0, 0\]"),
        ("mae_" + LGI, make_mask(range(16)), r"same positive number.*\[0\]"),
        ("mae_" + VIT, torch.cat((make_mask([1]), make_mask([1, 2]))), r"\[1, 2\]"),
        ("mae_" + LGI, make_mask([1, 2, 8, 15]).int(), "int32"),
        ("mae_" + LGI, make_mask([1, 2, 8, 15])[:, :8], r"\(1, 16\).*\(1, 8\)"),
    ],
    ids=["regions", "clips", "all_masked", "none_masked", "vit_clips", "dtype", "shape"],
)
def test_masks_that_do_not_fit_are_refused(name, mask, words):
    with pytest.raises(UserError, match=words) as caught:
        make(name)(torch.zeros(mask.shape[0], 3, 4, 32, 64), mask)
    assert "\n" not in str(caught.value)
