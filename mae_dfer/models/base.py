"""What every model offers to training: its configuration, input checks and the grouping of its parameters."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..errors import UserError
from .config import ModelConfig
from .lgi_former import LGIEncoder
from .memory import check_fits_to_make
from .vit import ViTEncoder


def make_encoder(config: ModelConfig) -> LGIEncoder | ViTEncoder:
    return ViTEncoder(config) if config.is_vit else LGIEncoder(config)


class VideoModel(nn.Module):
    """A model of clips with an ``encoder``; holds no state besides its parameters."""

    encoder: LGIEncoder | ViTEncoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_fits_to_make(config)
        self.config = config

    def check_clip(self, clip: Tensor) -> None:
        """Raises :class:`UserError` unless ``clip`` is (B, 3, frames, height, width) as configured, and of the dtype of
        the parameters, or of any floating-point dtype under autocast."""
        expected = (3, self.config.num_frames, *self.config.img_size)
        if clip.ndim != 5 or tuple(clip.shape[1:]) != expected:
            raise UserError(
                f"{self.config.name} expects clips of shape (batch, 3 channels, {expected[1]} frames, "
                f"{expected[2]} rows, {expected[3]} columns), got {tuple(clip.shape)}"
            )
        if not clip.is_floating_point():
            raise UserError(
                f"{self.config.name} expects clips of ImageNet-normalised floating-point numbers, got {clip.dtype}; "
                "mae_dfer.data.transforms.normalize makes them of pixels"
            )
        dtype = self.encoder.patch_embed.proj.weight.dtype
        if clip.dtype != dtype and not torch.is_autocast_enabled(clip.device.type):
            raise UserError(
                f"{self.config.name} has {dtype} parameters and got a clip of {clip.dtype}; give clip.to({dtype})"
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: 1-D ones (biases, norms) and tokens.

        The published pre-training decays the representative tokens by a naming slip; its fine-tuning does
        not.
        """
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim == 1 or name.rsplit(".", 1)[-1] in ("mask_token", "representative_tokens")
        }

    @property
    def num_layers(self) -> int:
        """Layers of layer-wise learning-rate decay: patch embedding, each encoder block, and all the rest."""
        return self.config.depth + 2

    def layer_index(self, name: str) -> int:
        """Layer of a parameter: 0 for the patch embedding, i + 1 for encoder block i, the last for the rest.

        The rest is the head, the final norm and the representative tokens; and a decoder.
        """
        if name.startswith("encoder.patch_embed."):
            return 0
        block = re.match(r"encoder\.blocks\.(\d+)\.", name)
        return int(block.group(1)) + 1 if block else self.num_layers - 1
