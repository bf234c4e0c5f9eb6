"""Video classifiers: LGI-Former (MAE-DFER) and VideoMAE's ViT.

Letters: B clips, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from .base import VideoModel, make_encoder
from .config import ModelConfig
from .layers import init_finetuning, layer_norm


class VideoClassifier(VideoModel):
    """Encoder, mean over tokens, LayerNorm, linear head (paper, section 3.2); no head where there are no classes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder = make_encoder(config)
        self.fc_norm = layer_norm(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, config.num_classes) if config.num_classes else nn.Identity()
        init_finetuning(self)
        self.encoder.init_tokens(limit=2.0)  # a hundred standard deviations: never reached
        # Near-zero logits at the start, as published: the first gradients come from a uniform prediction.
        for parameter in self.head.parameters():
            parameter.data.mul_(0.001)

    def forward_features(self, clip: Tensor) -> Tensor:
        """What enters the head.

        Args:
            clip: (B, 3, frames, height, width) floating point, ImageNet-normalised.

        Returns:
            (B, C).

        Raises:
            UserError: a clip of another shape or dtype than configured; the message names both.
        """
        self.check_clip(clip)
        return self.fc_norm(self.encoder.pooled(clip))

    def forward(self, clip: Tensor) -> Tensor:
        """Logits (B, classes), or features (B, C) where ``num_classes`` is 0; see :meth:`forward_features`."""
        return self.head(self.forward_features(clip))
