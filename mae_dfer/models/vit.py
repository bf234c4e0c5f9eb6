"""VideoMAE's vision transformer (arXiv 2203.12602): joint space-time attention over all tokens of a clip.

The baseline of the MAE-DFER paper, and the block of every decoder.
Letters: B clips, S tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig
from .layers import (
    Attention,
    Mlp,
    PatchEmbed,
    drop_path,
    drop_path_factors,
    drop_path_rates,
    layer_norm,
    patchify,
    sincos_positions,
)
from .regions import gather_tokens, token_indices
from .residual import Residual, through_blocks


class ViTBlock(nn.Module):
    """Pre-LayerNorm attention and MLP, both residual; stochastic depth draws once per clip."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.attn_norm = layer_norm(dim)
        self.attn = Attention(dim, num_heads, attn_drop_rate=attn_drop_rate, drop_rate=drop_rate, fused=fused)
        self.mlp_norm = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop_rate, fused=fused)
        self.fused = fused

    def forward(self, x: Tensor, wanted: int | None = None) -> Tensor:
        """(B, S, C) → (B, S, C), or of the last ``wanted`` tokens alone, (B, wanted, C).

        What only the others need is not computed, except by the eager block.
        """
        if self.fused:
            return self.of_stream(Residual(x), wanted).added()
        x = x + self._drop_path(self.attn(x, self.attn_norm))
        x = x + self._drop_path(self.mlp(x, self.mlp_norm))
        return x if wanted is None else x[:, -wanted:]

    def of_stream(self, stream: Residual, wanted: int | None = None) -> Residual:
        """:meth:`forward` of the stream's sum, fused; what the MLP adds is left to be added."""
        if wanted is None or wanted == stream.x.shape[1]:
            x, branch = self.attn.of_stream(stream, self.attn_norm)
        else:
            x = stream.added()
            x, branch = x[:, -wanted:], self.attn.of_last(x, self.attn_norm, wanted)
        return self._later(*self.mlp.of_stream(self._later(x, branch), self.mlp_norm))

    def _later(self, x: Tensor, branch: Tensor) -> Residual:
        return Residual(x, branch, drop_path_factors(branch, self.drop_path_rate, self.training, draw_axes=1))

    def _drop_path(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.training, draw_axes=1)


class ViTEncoder(nn.Module):
    """Patch embedding, positions and blocks; the final LayerNorm belongs to whoever uses the encoder."""

    position: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(
            config.embed_dim, config.tubelet_size, config.patch_size, fused=config.fused_attn
        )
        self.blocks = nn.ModuleList(
            ViTBlock(
                config.embed_dim,
                config.num_heads,
                config.mlp_ratio,
                drop_path_rate=rate,
                drop_rate=config.drop_rate,
                attn_drop_rate=config.attn_drop_rate,
                fused=config.fused_attn,
            )
            for rate in drop_path_rates(config.drop_path_rate, config.depth)
        )
        position = sincos_positions(config.num_tokens, config.embed_dim)
        self.register_buffer("position", position, persistent=False)

    def init_tokens(self, limit: float) -> None:
        """A ViT that averages its tokens has no learnable token."""

    def visible_indices(self, mask: Tensor) -> Tensor:
        """(B, tokens) bool → (B, K) int64 raster indices of the visible tokens, ascending."""
        return token_indices(~mask)

    def forward(self, clip: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encodes a clip, or its visible tokens alone.

        Args:
            clip: (B, 3, frames, height, width).
            visible: (B, K) from :meth:`visible_indices`, or None for all tokens.

        Returns:
            (B, K or all tokens, C), not normalised.
        """
        patches, position = patchify(clip, self.config.tubelet_size, self.config.patch_size), self.position
        if visible is not None:
            patches, position = gather_tokens(patches, visible), position[visible]
        x = F.dropout(self.patch_embed(patches) + position, self.config.drop_rate, self.training)
        return through_blocks(self.blocks, x, self.config.residual_dtype)

    def local_tokens(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Visible tokens (B, K, C): what the decoder reads."""
        return self(clip, visible)

    def pooled(self, clip: Tensor) -> Tensor:
        """(B, C), the mean over all tokens."""
        return torch.mean(self(clip), dim=1)
