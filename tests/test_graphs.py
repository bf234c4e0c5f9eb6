"""Training steps as CUDA graphs. They are pretended here: the forward of the capture, on the capture's tensors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_refusals import SMALL, make_set
from torch import Tensor, nn

from mae_dfer import create_model
from mae_dfer.data import open_dataset
from mae_dfer.errors import UserError
from mae_dfer.train import parse_config
from mae_dfer.training.finetune import FinetuneTask
from mae_dfer.training.graphs import GraphedModel
from mae_dfer.training.hardware import Hardware
from mae_dfer.training.loop import fit
from mae_dfer.training.pretrain import PretrainTask
from mae_dfer.training.run import RunFolder

SIZES = {"img_size": (32, 64), "num_frames": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "region_size": (1, 2, 2)}
CPU = Hardware(torch.device("cpu"), None)
NAMES = ["lgi_former_tiny_patch16_160", "mae_lgi_former_tiny_patch16_160"]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of every replay."""
    replayed: list[int] = []

    def pretend(module: nn.Module, sample: tuple[Tensor, ...], **options: Any) -> nn.Module:
        forward, own = module.forward, [tensor.clone() for tensor in sample]

        def replay(*inputs: Tensor) -> Tensor:
            for mine, given in zip(own, inputs, strict=True):
                mine.copy_(given)
            replayed.append(len(own[0]))
            return forward(*own)

        module.forward = replay
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", pretend)
    return replayed


def draw(name: str, clips: int) -> tuple[Tensor, ...]:
    clip = torch.randn(clips, 3, 4, 32, 64)
    half = torch.tensor([True, False, False, True]).repeat(4)  # of every region
    return (clip, half.repeat(clips, 1)) if name.startswith("mae") else (clip,)


@pytest.mark.parametrize("name", NAMES)
def test_a_graphed_model_is_the_model(name: str, replays: list[int]) -> None:
    plain = create_model(name, **SIZES)
    graphed = GraphedModel(copy.deepcopy(plain), draw(name, 3), CPU.autocast(cache=False))
    for clips, training in ((3, True), (2, True), (3, False)):
        batch, found = draw(name, clips), []
        for model in (plain.train(training), graphed.train(training)):
            out = model(*batch)
            found.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert replays == [3], "not a short batch, and no evaluation"
    inner = graphed.on_device.model
    assert all(one is other for one, other in zip(graphed.parameters(), inner.parameters(), strict=True))


def test_what_cannot_be_captured_says_what_to_do(replays: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="attn_drop_rate=0"):
        GraphedModel(create_model(NAMES[0], **SIZES, attn_drop_rate=0.1), draw(NAMES[0], 1), CPU.autocast())

    def fails(*given: Any, **options: Any) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*--no-cuda-graph"):
        GraphedModel(create_model(NAMES[0], **SIZES), draw(NAMES[0], 1), CPU.autocast())


@pytest.mark.parametrize("kind", [PretrainTask, FinetuneTask])
def test_training_by_graphs_leaves_the_same_weights(kind: Any, tmp_path: Path, replays: list[int]) -> None:
    data = open_dataset(make_set(tmp_path / "set"))
    (tmp_path / "set" / "train0.png").write_bytes(b"damaged")
    config, _, _ = parse_config([*SMALL, "--epochs=2", "--batch-size=2"])
    weights = []
    for cuda_graph in (False, True):
        config.cuda_graph = cuda_graph
        task = kind(config, data, CPU)
        fit(task, config, RunFolder(tmp_path / str(cuda_graph)), CPU)
        weights.append(task.model.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    assert replays == [2, 2], "of four steps, two have a clip too few"
