"""What models take and give: clips of their dtype, logits, or features where there are no classes."""

import pytest
import torch

import mae_dfer
from mae_dfer.checkpoint import save_official
from mae_dfer.errors import UserError


@pytest.mark.parametrize("name", ["lgi_former_tiny_patch16_160", "vit_tiny_patch16_160"])
def test_no_classes_give_features(name, tmp_path):
    model = mae_dfer.create_classifier(name, depth=1).eval()
    headless = mae_dfer.create_classifier(name, depth=1, num_classes=0).eval()
    save_official(model, tmp_path / "published.pth")
    report = mae_dfer.load_official(headless, tmp_path / "published.pth")
    assert report.dropped == ["head.weight", "head.bias"] and not report.fresh
    clip = torch.randn(1, 3, 16, 160, 160)
    features = headless(clip)
    assert features.shape == (1, 128)
    assert torch.equal(features, model.forward_features(clip)) and torch.equal(model.head(features), model(clip))
    with pytest.raises(UserError, match="num_classes must be 0"):
        mae_dfer.create_classifier(name, num_classes=-1)


def test_names_of_the_other_kind_are_refused():
    with pytest.raises(UserError, match="the classifier is lgi_former_tiny_patch16_160"):
        mae_dfer.create_classifier("mae_lgi_former_tiny_patch16_160")
    with pytest.raises(UserError, match="the pre-training model is mae_vit_tiny_patch16_160"):
        mae_dfer.create_autoencoder("vit_tiny_patch16_160")


@pytest.mark.parametrize("name", ["lgi_former_tiny_patch16_160", "mae_vit_tiny_patch16_160"])
def test_clips_of_other_dtypes_are_told(name):
    model = mae_dfer.create_model(name, depth=1)
    clip = torch.zeros(1, 3, 16, 160, 160)
    arguments = (torch.arange(800).reshape(1, 800) % 2 == 0,) if model.config.is_mae else ()
    cases = [(clip.byte(), "ImageNet-normalised floating-point"), (clip.double(), r"clip.to\(torch.float32\)")]
    for wrong, words in cases:
        with pytest.raises(UserError, match=words):
            model(wrong, *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(clip.bfloat16(), *arguments)
    model.double()(clip.double(), *arguments)
