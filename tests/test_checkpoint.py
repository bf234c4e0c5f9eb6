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
    model, other = make(), make(seed=1)
    torch.save({"model": to_official(model), "args": Payload()}, tmp_path / "file.pth")
    load_official(other, tmp_path / "file.pth")
    assert_same(model, other)
    assert not (tmp_path / "payload-ran").exists()


def test_namespace_is_allowed_for_our_files_alone(tmp_path):
    torch.save({"model": to_official(make()), "args": argparse.Namespace(lr=1.0)}, tmp_path / "file.pth")
    load_official(make(), tmp_path / "file.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class Weights(dict):
    pass


def prefixed(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


WRAPPINGS = {
    "bare": lambda weights: weights,
    **{key: lambda weights, key=key: {key: weights, "epoch": 1} for key in ("state_dict", "model_state_dict", "best")},
    "key in key": lambda weights: {"checkpoint": {"model": weights}},
    "subclass of a dictionary": lambda weights: {"model": Weights(weights)},
    **{prefix: prefixed(prefix) for prefix in ("module.", "_orig_mod.", "backbone.", "model.", "net.", "a.module.b.")},
    "prefix twice": prefixed("module.module."),
    "key and prefixes": lambda weights: {"module": prefixed("module._orig_mod.")(weights)},
    "averaged model": lambda weights: {"model": prefixed("module.")(weights) | {"n_averaged": torch.tensor(3)}},
    "optimiser": lambda weights: {"model": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    "epoch among the weights": lambda weights: weights | {"epoch": 3, "args": argparse.Namespace()},
    "same weights twice": lambda weights: {"model": weights, "state_dict": weights},
}


@pytest.mark.parametrize("name", [LGI, "mae_" + VIT])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_the_network_is_found_wherever_it_is(wrapping, name, tmp_path):
    model, other = make(name), make(name, seed=1)
    torch.save(WRAPPINGS[wrapping](to_official(model)), tmp_path / "file.pth")
    report = load_official(other, tmp_path / "file.pth")
    assert_same(model, other)
    assert sorted(report.loaded) == sorted(other.state_dict()) and not report.fresh and not report.note


def test_a_published_file_may_be_safetensors(tmp_path):
    model, other = make(), make(seed=1)
    save_file(to_official(model), tmp_path / "file.safetensors")
    load_official(other, tmp_path / "file.safetensors")
    assert_same(model, other)


def test_weights_in_half_precision_are_taken():
    model, other = make(), make(seed=1)
    load_official(other, {name: value.bfloat16() for name, value in to_official(model).items()})
    assert torch.equal(other.head.weight, model.head.weight.bfloat16().float())


def test_other_parts_of_a_training_module_are_dropped_by_name():
    model, other = make(), make(seed=1)
    content = {"state_dict": prefixed("model.")(to_official(model)) | {"loss_fn.weight": torch.ones(7)}}
    report = load_official(other, content)
    assert_same(model, other)
    assert report.dropped == ["loss_fn.weight"]
    content["state_dict"]["model.scale"] = torch.ones(1)
    with pytest.raises(UserError, match="unexpected scale"):
        load_official(other, content)


@pytest.mark.parametrize("key", ["model_ema", "ema", "state_dict_ema", "ema_state_dict"])
def test_the_moving_average_is_chosen_by_name(key):
    model, average, other = make(), make(seed=1), make(seed=2)
    content = {key: {"module": to_official(average)}, "model": to_official(model)}
    for weights, expected in (("auto", model), ("model", model), ("ema", average)):
        report = load_official(other, content, weights=weights)
        assert_same(expected, other)
        assert "--weights" in report.note and ("took model," in report.note) == (expected is model)
    del content["model"]
    assert not load_official(other, content).note
    assert_same(average, other)
    with pytest.raises(UserError, match="give --weights ema"):
        load_official(other, content, weights="model")
    with pytest.raises(UserError, match="holds no moving average"):
        load_official(other, to_official(model), weights="ema")
    with pytest.raises(UserError, match="must be one of auto, model, ema"):
        load_official(other, to_official(model), weights="average")


def test_the_moving_average_is_told_by_its_prefix():
    model, average, other = make(), make(seed=1), make(seed=2)
    content = prefixed("model.")(to_official(model)) | prefixed("ema_model.module.")(to_official(average))
    for weights, expected in (("auto", model), ("ema", average)):
        load_official(other, content, weights=weights)
        assert_same(expected, other)


def test_several_networks_are_not_guessed_among():
    weights = to_official(make())
    content = prefixed("student.")(weights) | prefixed("teacher.")(weights)
    with pytest.raises(UserError, match=r"several networks \(student\., teacher\.\)"):
        load_official(make(), content)
    many = {key: value for i in range(20) for key, value in prefixed(f"net{i}.")(weights).items()}
    with pytest.raises(UserError, match="20 networks"):
        load_official(make(), many)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(7, 32).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.ones(1).expand(7, 32), "expanded tensor"),
        (torch.zeros(7, 32, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(7, 32, dtype=torch.int8), "torch.int8"),
        ([1.0], "list"),
    ],
)
def test_what_is_no_weight_is_named(value, words, tmp_path):
    model = make()
    before = snapshot(model)
    torch.save({"model": to_official(make(seed=1)) | {"head.weight": value}}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"head\.weight is not a plain tensor of floating-point numbers") as caught:
        load_official(model, tmp_path / "file.pth")
    assert words in str(caught.value)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.nn.Linear(1, 1), r"a whole object \(torch\.nn\.modules\.linear\.Linear\); save its state_dict\(\)"),
        ({"videomae.embeddings.weight\n": torch.ones(1)}, r"no patch_embed\.proj\.weight; it holds videomae"),
        ({}, "it holds nothing"),
        (torch.ones(2), r"other than a state dict \(torch\.float32, shape \(2,\)\)"),
        ([1], r"other than a state dict \(list\)"),
    ],
)
def test_a_file_without_the_network_says_what_it_holds(content, words, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=words) as caught:
        load_official(make(), tmp_path / "file.pth")
    assert "\n" not in str(caught.value)


def test_pretraining_does_not_start_from_a_classifier():
    with pytest.raises(UserError, match="holds a classifier"):
        load_official(make("mae_" + LGI), to_official(make()))


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


@pytest.mark.parametrize(
    "content",
    [b"", b"not safetensors", b"<html></html>", "truncated", "foreign", "other options", "no JSON", "absent"],
)
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
    elif content == "no JSON":
        save_file({"weight": torch.zeros(2)}, path, metadata={"mae_dfer": "{"})
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
