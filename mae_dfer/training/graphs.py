"""Forward and backward of a training step as CUDA graphs, for a GPU that computes faster than Python launches.

A graph repeats the kernels of its capture on the addresses that they had. So it serves batches of one shape, parameters
stay where they are, and nothing in it may wait for the CPU or take a value from it.
"""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models import MaskedAutoencoder, VideoModel


class GraphedModel(nn.Module):
    """A model whose forward and backward are graphs while it trains on batches of the sample's shape.

    It is called as the model is, with the mask of pre-training on the CPU, where its indices are computed. Parameters
    are the model's own. Evaluation, and batches of another shape (those that unreadable videos left short), run without
    graphs.

    Gradients are the graphs' own memory, and the next backward writes over them. They must be spent and set to None
    before it, as `Optimizers.step` does, and cannot be summed over several batches. The memory of a step's activations
    stays taken as long as this object lives.

    Args:
        model: on a GPU, which is the current device. It may then be wrapped in DistributedDataParallel, not before.
        sample: what the model is called with; values do not matter, and every replay writes its batch over them.
        autocast: of the forward, to be entered many times, without a cache of casts: a graph casts what was updated
            since its capture.

    Raises:
        UserError: attention dropout, or a model that cannot be captured.
    """

    def __init__(self, model: VideoModel, sample: tuple[Tensor, ...], autocast: AbstractContextManager[Any]) -> None:
        super().__init__()
        if model.config.attn_drop_rate > 0.0:
            raise UserError(
                "a CUDA graph would draw the same attention dropout at every step, since its seed comes from the CPU; "
                "train with attn_drop_rate=0, or without a graph (--no-cuda-graph)"
            )
        self.on_device = _OnDevice(model, autocast)
        self.train()
        gc.collect()  # graphs of the stage before, whose memory PyTorch's callable holds in a cycle
        inputs = self.on_device.inputs(*sample)
        self._kind = _kind(inputs)
        try:
            torch.cuda.make_graphed_callables(self.on_device, inputs, allow_unused_input=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"the training step cannot be captured as a CUDA graph ({reason}); train without (--no-cuda-graph)"
            ) from error
        # It has replaced the module's forward, which is still wanted without graphs.
        self._replay = vars(self.on_device).pop("forward")

    def forward(self, *arguments: Tensor) -> Tensor:
        inputs = self.on_device.inputs(*arguments)
        if self.training and _kind(inputs) == self._kind:
            output: Tensor = self._replay(*inputs)
            return output
        return self.on_device(*inputs)


class _OnDevice(nn.Module):
    """A model as a function of tensors on its device alone, with its forward under autocast, and not its backward."""

    def __init__(self, model: VideoModel, autocast: AbstractContextManager[Any]) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast

    def inputs(self, clip: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """What :meth:`forward` takes, of what the model takes."""
        self.model.check_clip(clip)
        if mask is None:
            return (clip,)
        assert isinstance(self.model, MaskedAutoencoder)
        return clip, *self.model.split_tokens(mask, clip)

    def forward(self, clip: Tensor, *indices: Tensor) -> Tensor:
        with self.autocast:
            if not indices:
                output: Tensor = self.model(clip)
                return output
            assert isinstance(self.model, MaskedAutoencoder)
            visible, masked = indices
            return self.model.forward_decoder(self.model.forward_encoder(clip, visible), visible, masked)


def _kind(tensors: tuple[Tensor, ...]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in tensors]
