"""Masked auto-encoding of clips (MAE-DFER, arXiv 2307.02227, section 3.1), over either encoder.

Letters: B clips, K visible and M masked tokens of a clip, C encoder and E decoder channels, P values of a
patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import VideoModel, make_encoder
from .config import ModelConfig
from .layers import init_pretraining, init_token, layer_norm, linear_layer, sincos_positions
from .regions import check_mask, token_indices
from .residual import through_blocks
from .vit import ViTBlock


class Decoder(nn.Module):
    """Joint-attention blocks over all tokens; the last one's output, norm and head of the masked ones alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.decoder_embed_dim
        self.residual_dtype = config.residual_dtype
        self.blocks = nn.ModuleList(
            ViTBlock(dim, config.decoder_num_heads, config.mlp_ratio, fused=config.fused_attn)
            for _ in range(config.decoder_depth)
        )
        self.norm = layer_norm(dim)
        self.head = linear_layer(dim, config.patch_dim, fused=config.fused_attn)

    def forward(self, tokens: Tensor, num_masked: int) -> Tensor:
        """(B, K + M, E), visible tokens first → (B, M, P)."""
        return self.head(self.norm(through_blocks(self.blocks, tokens, self.residual_dtype, num_masked)))


class MaskedAutoencoder(VideoModel):
    """Predicts appearance and motion of the masked tokens from the visible ones."""

    decoder_position: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_embed_dim))
        self.encoder = make_encoder(config)
        self.encoder_norm = layer_norm(config.embed_dim)
        self.decoder = Decoder(config)
        self.encoder_to_decoder = linear_layer(
            config.embed_dim, config.decoder_embed_dim, bias=False, fused=config.fused_attn
        )
        position = sincos_positions(config.num_tokens, config.decoder_embed_dim)
        self.register_buffer("decoder_position", position, persistent=False)
        # As published: the projection between them keeps PyTorch's initial values, and tokens are cut at one
        # standard deviation.
        init_pretraining(self.encoder)
        init_pretraining(self.decoder)
        self.encoder.init_tokens(limit=0.02)
        init_token(self.mask_token, limit=0.02)

    def forward(self, clip: Tensor, mask: Tensor) -> Tensor:
        """Predicts the targets of :func:`mae_dfer.losses.reconstruction_targets`.

        Args:
            clip: (B, 3, frames, height, width) floating point, ImageNet-normalised.
            mask: (B, tokens) bool in raster order (t, h, w), True = masked. Left on the CPU, it costs a GPU
                no synchronisation.

        Returns:
            (B, M, P), the masked tokens in raster order.

        Raises:
            UserError: a clip or mask of another shape, or a mask that hides a different number of tokens from
                one clip, or one region, to the next.
        """
        self.check_clip(clip)
        visible, masked = self.split_tokens(mask, clip)
        return self.forward_decoder(self.forward_encoder(clip, visible), visible, masked)

    def split_tokens(self, mask: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Raster indices of visible tokens (B, K), in the encoder's order, and of masked tokens (B, M)."""
        check_mask(mask, clip.shape[0], self.config.num_tokens)
        visible, masked = self.encoder.visible_indices(mask), token_indices(mask)
        return visible.to(clip.device, non_blocking=True), masked.to(clip.device, non_blocking=True)

    def forward_encoder(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Normalised visible tokens (B, K, C) of a clip, in the order of ``visible`` (B, K)."""
        return self.encoder_norm(self.encoder.local_tokens(clip, visible))

    def forward_decoder(self, latent: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predictions (B, M, P) from the latent (B, K, C) and the indices of :meth:`split_tokens`."""
        if self.config.decoder_positions == "published":
            # The published code adds positions in raster order to tokens that are in region order, which
            # misplaces every visible token whose region does not come in raster order. Its checkpoints were
            # trained so.
            visible = visible.sort(dim=1).values
        known = self.encoder_to_decoder(latent) + self.decoder_position[visible]
        hidden = self.mask_token + self.decoder_position[masked]
        return self.decoder(torch.cat((known, hidden.to(known.dtype)), dim=1), masked.shape[1])
