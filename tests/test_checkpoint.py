"""Weights in and out, and the one-line errors for files that do not fit. Numbers: test_golden.py."""

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

from mae_dfer import create_model, load_official
from mae_dfer.checkpoint import (
    load_into,
    load_pretrained_encoder,
    load_weights,
    save_official,
    save_weights,
    to_official,
)
from mae_dfer.errors import UserError
from mae_dfer.models import ModelConfig

SIZES = {
    "img_size": 32,
    "num_frames": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "region_size": (1, 2, 1),
}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
LGI, VIT = "lgi_former_tiny_patch16_160", "vit_tiny_patch16_160"


def make(name=LGI, seed=0, **overrides):
    """A model whose every parameter, biases too, is random."""
    torch.manual_seed(seed)
    decoder = DECODER if name.startswith("mae_") else {}
    model = create_model(name, **SIZES | decoder | overrides)
    for parameter in model.parameters():
        parameter.data.normal_()
    return model


def assert_same(model, other, prefix=""):
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs) or prefix
    for name in ours:
        if name.startswith(prefix):
            assert torch.equal(ours[name], theirs[name]), name


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, before):
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", [LGI, VIT, "mae_" + LGI, "mae_" + VIT])
@pytest.mark.parametrize("key", ["model", "module"])
def test_published_file_round_trip(name, key, tmp_path):
    model, other = make(name), make(name, seed=1)
    path = tmp_path / "published file.pth"
    # As published: the options of the run are pickled beside the weights.
    torch.save({key: to_official(model), "epoch": 50, "args": argparse.Namespace(model=name, lr=1e-3)}, path)
    report = load_official(other, path)
    assert_same(model, other)
    assert sorted(report.loaded) == sorted(other.state_dict())
    assert report.dropped == report.fresh == []


@pytest.mark.parametrize("share", ["local_exchange", "all"])
def test_shared_attention_round_trip(share, tmp_path):
    model, other = make(share_attention=share), make(share_attention=share, seed=1)
    save_official(model, tmp_path / "file.pth")
    load_official(other, str(tmp_path / "file.pth"))
    assert_same(model, other)


def test_to_official_copies():
    model = make()
    to_official(model)["head.bias"].zero_()
    assert model.head.bias.abs().min() > 0


@pytest.mark.parametrize("name", [LGI, VIT])
def test_classifier_from_published_pretraining(name):
    mae, model = make("mae_" + name), make(name, seed=1)
    before = snapshot(model)
    report = load_official(model, to_official(mae))
    assert_same(mae.encoder, model.encoder)
    fresh = ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert report.fresh == fresh
    assert sorted(report.loaded + fresh) == sorted(model.state_dict())
    assert {"mask_token", "encoder.norm.weight", "encoder.norm.bias", "decoder.head.weight"} <= set(report.dropped)
    assert not any("blocks" in dropped and dropped.startswith("encoder.") for dropped in report.dropped)
    for dropped in fresh:
        assert torch.equal(model.state_dict()[dropped], before[dropped])


def test_classifier_from_our_pretraining():
    mae, model = make("mae_" + LGI), make(seed=1)
    before = snapshot(model)
    report = load_pretrained_encoder(model, mae.state_dict())
    assert_same(mae.encoder, model.encoder)
    assert report.fresh == ["fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"]
    assert torch.equal(model.head.weight, before["head.weight"])
    assert {"mask_token", "encoder_norm.weight", "encoder_to_decoder.weight"} <= set(report.dropped)
    assert sorted(report.loaded + report.fresh) == sorted(model.state_dict())


def break_state(weights, damage):
    if damage == "missing":
        weights.pop("blocks.1.first_attn.v_bias")
    elif damage == "unexpected":
        weights["blocks.9.mlp.fc1.bias"] = torch.zeros(3)
    else:
        weights["lg_region_tokens"] = torch.zeros(7, 32)
    return weights


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", r"missing blocks\.1\.first_attn\.v_bias"),
        ("unexpected", r"unexpected blocks\.9\.mlp\.fc1\.bias"),
        ("shape", r"lg_region_tokens \(7, 32\) for \(4, 32\)"),
    ],
)
def test_published_weights_that_do_not_fit(damage, words, tmp_path):
    model = make()
    before = snapshot(model)
    path = tmp_path / "file.pth"
    torch.save({"model": break_state(to_official(make(seed=1)), damage)}, path)
    with pytest.raises(UserError, match=words) as caught:
        load_official(model, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert_untouched(model, before)


def test_other_sizes_name_the_first_few_only():
    model = make()
    with pytest.raises(UserError, match=r"and \d+ more") as caught:
        load_official(model, to_official(make(embed_dim=64)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("load", [load_official, load_pretrained_encoder, load_into])
def test_weights_of_another_kind_of_model_are_refused(load):
    model = make()
    before = snapshot(model)
    other = make("mae_" + VIT)
    with pytest.raises(UserError, match="missing"):
        load(model, to_official(other) if load is load_official else other.state_dict())
    assert_untouched(model, before)


def test_pretraining_of_other_regions_is_refused():
    model, mae = make(), make("mae_" + LGI, region_size=(2, 2, 1))
    before = snapshot(model)
    with pytest.raises(UserError, match=r"representative_tokens \(2, 32\) for \(4, 32\)"):
        load_pretrained_encoder(model, mae.state_dict())
    assert_untouched(model, before)


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (open, ("payload-ran", "w"))


def test_code_in_a_published_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": to_official(make()), "args": Payload()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth"):
        load_official(make(), tmp_path / "file.pth")
    assert not (tmp_path / "payload-ran").exists()


def test_namespace_is_allowed_for_our_files_alone(tmp_path):
    torch.save({"model": to_official(make()), "args": argparse.Namespace(lr=1.0)}, tmp_path / "file.pth")
    load_official(make(), tmp_path / "file.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated", "no state dict", "absent"])
def test_unreadable_published_files(content, tmp_path):
    path = tmp_path / "file.pth"
    if content == "truncated":
        torch.save({"model": to_official(make())}, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "no state dict":
        torch.save({"optimizer": {"lr": 1.0}}, path)
    elif content != "absent":
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"file\.pth") as caught:
        load_official(make(), path)
    assert "\n" not in str(caught.value)


def test_our_weights_round_trip(tmp_path):
    path = tmp_path / "new folder" / "weights.safetensors"
    model = make(fused_attn=False, pool="all")
    save_weights(model, path, {"classes": ["happy", "sad"], "epoch": 3})
    tensors, metadata = load_weights(path)
    assert metadata["classes"] == ["happy", "sad"] and metadata["epoch"] == 3
    assert ModelConfig.from_dict(metadata["model"]) == model.config
    settings = dict(metadata["model"])
    again = create_model(settings.pop("name"), **settings)
    report = load_into(again, tensors)
    assert_same(model, again)
    assert again.config == model.config and report.loaded == list(tensors)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(make(), path)
    before = path.read_bytes()

    def fail(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("mae_dfer.checkpoint.own.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_weights(make(seed=1), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not safetensors", "truncated", "foreign", "other options", "absent"])
def test_unreadable_weights(content, tmp_path):
    path = tmp_path / "weights.safetensors"
    if content == "truncated":
        save_weights(make(), path)
        path.write_bytes(path.read_bytes()[:-100])
    elif content == "foreign":
        save_file({"weight": torch.zeros(2)}, path)
    elif content == "other options":
        settings = json.dumps({"model": {"name": LGI, "colour": 3}})
        save_file({"weight": torch.zeros(2)}, path, metadata={"mae_dfer": settings})
    elif content != "absent":
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


def test_save_weights_takes_models_of_this_package(tmp_path):
    with pytest.raises(TypeError, match="DataParallel"):
        save_weights(torch.nn.DataParallel(make()), tmp_path / "file")
    with pytest.raises(ValueError, match="'model'"):
        save_weights(make(), tmp_path / "file", {"model": "mine"})
    assert list(tmp_path.iterdir()) == []
