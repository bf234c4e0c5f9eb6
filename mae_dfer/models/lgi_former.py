"""LGI-Former (MAE-DFER, arXiv 2307.02227, section 3.2): attention inside regions, among their representative
tokens, and back from these to the local tokens.

Letters: B clips, N regions of a clip, L local tokens of a region, S = 1 + L, C channels. Tokens are kept as
(B, N, S, C) with a region's representative token at index 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer_kernels import exchange

from .config import ModelConfig
from .layers import (
    LAYER_NORM_EPS,
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
from .regions import gather_tokens, partition, region_order, visible_by_region


class LGIBlock(nn.Module):
    """Local, global, exchange, MLP: all residual, each after its own LayerNorm (paper, equations 2 to 8).

    Steps and attentions that the configuration leaves out or shares have no parameters.
    """

    def __init__(self, config: ModelConfig, drop_path_rate: float) -> None:
        super().__init__()
        dim, share = config.embed_dim, config.share_attention
        self.local_attention, self.global_attention = config.local_attention, config.global_attention
        self.exchange, self.share_attention = config.exchange, share
        self.drop_path_rate = drop_path_rate

        self.local_norm = layer_norm(dim)
        if config.local_attention == "representative":
            self.local_context_norm = layer_norm(dim)
        self.local_attn = _attention(config)
        if config.global_attention:
            self.global_norm = layer_norm(dim)
            if share != "all":
                self.global_attn = _attention(config)
        if config.exchange != "none":
            self.exchange_norm = layer_norm(dim)
            if config.exchange == "cross":
                self.exchange_context_norm = layer_norm(dim)
            if share == "none":
                self.exchange_attn = _attention(config)
        self.mlp_norm = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, S, C) → (B, N, S, C)."""
        x = self._local(x)
        representative, local = x[:, :, 0], x[:, :, 1:]
        if self.global_attention:
            representative = self._global(representative)
        if self.exchange == "cross":
            local = self._exchange(local, representative)
        x = torch.cat((representative.unsqueeze(2), local), dim=2)
        if self.exchange == "self":
            x = x + self._drop_per_region(self._exchange_attention()(self.exchange_norm(x), regional=True))
        return x + self._drop_per_region(self.mlp(self.mlp_norm(x)))

    def _local(self, x: Tensor) -> Tensor:
        """Attention inside each region: of all its tokens, or of the representative token alone."""
        if self.local_attention == "self":
            return x + self._drop_per_region(self.local_attn(self.local_norm(x), regional=True))
        representative, local = x[:, :, :1], x[:, :, 1:]
        update = self.local_attn(self.local_norm(representative), self.local_context_norm(local))
        return torch.cat((representative + self._drop_per_region(update), local), dim=2)

    def _global(self, representative: Tensor) -> Tensor:
        """Self-attention among a clip's representative tokens, (B, N, C)."""
        attn = self.local_attn if self.share_attention == "all" else self.global_attn
        return representative + self._drop_per_clip(attn(self.global_norm(representative), regional=True))

    def _exchange(self, local: Tensor, representative: Tensor) -> Tensor:
        """Every local token (B, N, L, C) of a clip queries all its representative tokens (B, N, C)."""
        attn, norm = self._exchange_attention(), self.exchange_norm
        context = self.exchange_context_norm(representative)
        drops = self.training and (attn.attn_drop_rate or attn.drop_rate)
        if attn.fused and not drops:
            factors = drop_path_factors(local, self.drop_path_rate, self.training, draw_axes=1)
            return exchange(
                local, context, norm.weight, norm.bias, attn.qkv.weight, attn.q_bias, attn.v_bias, attn.proj.weight,
                attn.proj.bias, attn.num_heads, row_scale=factors, eps=LAYER_NORM_EPS,
            )  # fmt: skip
        update = attn(norm(local).flatten(1, 2), context)
        return local + self._drop_per_clip(update.view(local.shape))

    def _exchange_attention(self) -> Attention:
        return self.exchange_attn if self.share_attention == "none" else self.local_attn

    def _drop_per_region(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.training, draw_axes=2)

    def _drop_per_clip(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.training, draw_axes=1)


def _attention(config: ModelConfig) -> Attention:
    return Attention(
        config.embed_dim,
        config.num_heads,
        attn_drop_rate=config.attn_drop_rate,
        drop_rate=config.drop_rate,
        fused=config.fused_attn,
        init_split=(1, 2),
    )


class LGIEncoder(nn.Module):
    """Patch embedding, positions, one representative token a region, and LGI blocks.

    The final LayerNorm belongs to whoever uses the encoder.
    """

    position: Tensor
    order: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.representative_tokens = nn.Parameter(torch.zeros(config.num_regions, config.embed_dim))
        self.patch_embed = PatchEmbed(config.embed_dim, config.tubelet_size, config.patch_size)
        self.blocks = nn.ModuleList(
            LGIBlock(config, rate) for rate in drop_path_rates(config.drop_path_rate, config.depth)
        )
        position = sincos_positions(config.num_tokens, config.embed_dim)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("order", region_order(config.grid_size, config.region_size), persistent=False)

    def init_tokens(self) -> None:
        """Representative tokens: truncated normal, 0.02."""
        nn.init.trunc_normal_(self.representative_tokens, std=0.02)

    def visible_indices(self, mask: Tensor) -> Tensor:
        """(B, tokens) bool → (B, N·k) int64 raster indices of visible tokens, k of each region in turn."""
        return visible_by_region(mask, self.order).flatten(1)

    def forward(self, clip: Tensor, visible: Tensor | None = None) -> Tensor:
        """Encodes a clip, or its visible tokens alone.

        Args:
            clip: (B, 3, frames, height, width).
            visible: (B, N·k) from :meth:`visible_indices`, or None for all tokens.

        Returns:
            (B, N, 1 + L, C) or (B, N, 1 + k, C), not normalised.
        """
        patches = patchify(clip, self.config.tubelet_size, self.config.patch_size)
        if visible is None:
            local = self.patch_embed(patches) + self.position
            local = partition(local, self.config.grid_size, self.config.region_size)
        else:
            local = self.patch_embed(gather_tokens(patches, visible)) + self.position[visible]
            local = local.view(local.shape[0], self.config.num_regions, -1, local.shape[-1])
        local = F.dropout(local, self.config.drop_rate, self.training)
        representative = self.representative_tokens.to(local.dtype).expand(local.shape[0], -1, -1)
        x = torch.cat((representative.unsqueeze(2), local), dim=2)
        for block in self.blocks:
            x = block(x)
        return x

    def local_tokens(self, x: Tensor) -> Tensor:
        """(B, N, 1 + k, C) → (B, N·k, C): what the decoder reads."""
        return x[:, :, 1:].flatten(1, 2)

    def pool(self, x: Tensor) -> Tensor:
        """(B, N, S, C) → (B, C), the mean over the tokens that ``config.pool`` names."""
        tokens = {"representative": x[:, :, :1], "local": x[:, :, 1:], "all": x}[self.config.pool]
        return tokens.mean(dim=(1, 2))
