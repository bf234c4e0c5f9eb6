"""Every number the published implementation computed (tests/golden/README.md), under its weight names."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import build, published_weights, seeded

from mae_dfer import load_official
from mae_dfer.checkpoint import to_official
from mae_dfer.losses import reconstruction_loss, reconstruction_loss_terms, reconstruction_targets

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
WITH_GRADIENTS = [path for path in FILES if json.loads(str(np.load(path)["config"]))["grads"]]


# Of module scope: pytest then runs all tests of a file before it loads the next; the paper's models are large
@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request):
    """One file: what it holds, and our eager float64 model with its weights and clip."""
    file = np.load(request.param)
    config, meta = json.loads(str(file["config"])), json.loads(str(file["meta"]))
    model = build(config, fused_attn=False).double().eval()
    weights = published_weights(meta["shapes"])
    load_official(model, weights)
    clip = seeded(config["seed"], (config["batch"], 3, config["num_frames"], *config["img_size"]))
    return SimpleNamespace(config=config, meta=meta, file=file, model=model, weights=weights, clip=clip)


def assert_close(actual, expected, relative):
    """Against the largest entry; an entry near zero has no relative error of its own."""
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


def assert_outputs(golden, model, clip, relative):
    if "mask" not in golden.file:
        assert_close(model.forward_features(clip).double(), golden.file["features"], relative)
        assert_close(model(clip).double(), golden.file["logits"], relative)
        return
    mask = torch.from_numpy(golden.file["mask"])
    pred, target = model(clip, mask), reconstruction_targets(clip, mask)
    appearance, motion = reconstruction_loss_terms(pred, target)
    assert_close(pred[:, :4, :16].double(), golden.file["pred_head"], relative)
    assert_close(target[:, :4, ::96].double(), golden.file["target_head"], relative)
    for name, value in (
        ("pred_norm", pred.double().norm()),
        ("target_norm", target.double().norm()),
        ("loss", reconstruction_loss(pred, target)),
        ("loss_appearance", appearance),
        ("loss_motion", motion),
    ):
        assert value.item() == pytest.approx(golden.meta[name], rel=relative), name


def test_there_are_golden_files():
    assert len(FILES) == 14 and len(WITH_GRADIENTS) == 11


@torch.no_grad()
def test_outputs_in_float32_through_the_fused_path(golden):
    model = build(golden.config, fused_attn=True).eval()
    model.load_state_dict(golden.model.state_dict())
    assert_outputs(golden, model, golden.clip.float(), 2e-4)


@torch.no_grad()
def test_outputs_in_float64(golden):
    assert_outputs(golden, golden.model, golden.clip, 1e-9)


def test_published_names_come_back(golden):
    written = to_official(golden.model)
    assert set(written) == set(golden.meta["shapes"])
    shared = bool({"lg_attn_param_sharing_first_third", "lg_attn_param_sharing_all"} & set(golden.config["lg"]))
    for name, value in written.items():
        # One shared attention stands under each step's name; of several values, the third step's came last.
        source = name.replace("first_attn.", "third_attn.") if shared else name
        if "lg_attn_param_sharing_all" in golden.config["lg"]:
            source = source.replace("second_attn.", "third_attn.")
        assert torch.equal(value, golden.weights[source].double()), name


@pytest.mark.parametrize("golden", WITH_GRADIENTS, indirect=True, ids=lambda path: path.stem)
def test_gradient_norms_in_float64(golden):
    model, clip = copy.deepcopy(golden.model), golden.clip.clone().requires_grad_("mask" not in golden.file)
    if "mask" in golden.file:
        mask = torch.from_numpy(golden.file["mask"])
        reconstruction_loss(model(clip, mask), reconstruction_targets(clip, mask)).backward()
    else:
        logits = model(clip)
        (logits * seeded(golden.config["seed"] + 1, logits.shape)).sum().backward()
        assert clip.grad.norm().item() == pytest.approx(golden.meta["grad_input_norm"], rel=1e-9)
    # With gradients in place of weights, the mapping of names yields gradients under the published names.
    for parameter in model.parameters():
        parameter.data = parameter.grad
    gradients, norms = to_official(model), golden.meta["grad_norms"]
    assert norms and set(norms) <= set(gradients)
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-9, abs=1e-12), name
