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

from .casts import current
from .config import ModelConfig
from .layers import (
    LAYER_NORM_EPS,
    Attention,
    Mlp,
    PatchEmbed,
    drop_path,
    drop_path_factors,
    drop_path_rates,
    init_token,
    layer_norm,
    patchify,
    sincos_positions,
)
from .recompute import with_zero_gradients
from .regions import gather_tokens, partition, region_order, visible_by_region
from .residual import Residual, through_blocks


class LGIBlock(nn.Module):
    """Local, global, exchange, MLP: all residual, each after its own LayerNorm (paper, equations 2 to 8).

    Steps and attentions that the configuration leaves out or shares have no parameters.
    """

    def __init__(self, config: ModelConfig, drop_path_rate: float) -> None:
        super().__init__()
        dim, share = config.embed_dim, config.share_attention
        self.local_attention, self.global_attention = config.local_attention, config.global_attention
        self.exchange, self.share_attention = config.exchange, share
        self.drop_path_rate, self.fused = drop_path_rate, config.fused_attn

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
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate, fused=config.fused_attn)

    def forward(self, x: Tensor, wanted: str = "all") -> Tensor:
        """(B, N, S, C) → (B, N, S', C), the tokens that are ``wanted``.

        S' is S for ``all``, 1 for ``representative``, L for ``local``. What only the others need is not computed,
        except by the eager block.
        """
        return self.of_stream(Residual(x), wanted).added()

    def of_stream(self, stream: Residual, wanted: str = "all") -> Residual:
        """:meth:`forward` of the stream's sum; what the MLP adds is left to be added."""
        if wanted == "representative" and self.fused and self.exchange != "self":
            return self._representatives(stream.added())
        stream = self._local(stream)
        if not (self.exchange == "cross" and self._exchanges_fused()):
            stream = Residual(stream.added())
        first, local = _split(stream)
        representative = first.added()
        only_local = wanted == "local" and self.fused and self.exchange != "self"
        if only_local and self.exchange == "none":
            return self._mlp(Residual(self._without(local.x, "global_", self.global_attention)))
        if self.global_attention:
            representative = self._global(representative)
        if self.exchange == "cross":
            x = self._exchange(local, representative, front=None if only_local else representative)
        else:
            x = torch.cat((representative, local.x), dim=2)
        stream = Residual(x)
        if only_local:
            return self._mlp(stream)
        if self.exchange == "self":
            stream = self._later(stream.x, self._exchange_attention()(stream.x, self.exchange_norm))
        stream = self._mlp(stream)
        return stream if wanted == "all" else Residual(select(stream.added(), wanted))

    def _local(self, stream: Residual) -> Residual:
        """Attention inside each region: of all its tokens, or of the representative token alone."""
        if self.local_attention == "self" and self.fused:
            return self._later(*self.local_attn.of_stream(stream, self.local_norm))
        x = stream.added()
        if self.local_attention == "self":
            return self._later(x, self.local_attn(x, self.local_norm))
        return Residual(torch.cat((self._local_representative(x), x[:, :, 1:]), dim=2))

    def _local_representative(self, x: Tensor) -> Tensor:
        """What :meth:`_local` makes of the representative tokens, (B, N, 1, C)."""
        representative, local = x.split((1, x.shape[2] - 1), dim=2)
        if self.local_attention == "self":
            update = self.local_attn.cross(representative, self.local_norm, x, self.local_norm)
        else:
            update = self.local_attn.cross(representative, self.local_norm, local, self.local_context_norm)
        return self._later(representative, update).added()

    def _global(self, representative: Tensor) -> Tensor:
        """Self-attention among a clip's representative tokens, (B, N, 1, C)."""
        attn = self.local_attn if self.share_attention == "all" else self.global_attn
        update = attn(representative.squeeze(2), self.global_norm)
        return representative + self._drop_per_clip(update).unsqueeze(2)

    def _exchanges_fused(self) -> bool:
        attn = self._exchange_attention()
        return self.fused and not (self.training and (attn.attn_drop_rate or attn.drop_rate))

    def _exchange(self, stream: Residual, representative: Tensor, front: Tensor | None) -> Tensor:
        """Every local token (B, N, L, C) of a clip queries all its representative tokens (B, N, 1, C).

        Returns the stream's sum after that, behind ``front``. Unless fused, the stream comes with nothing to add.
        """
        (local, branch, drawn), attn, norm = stream, self._exchange_attention(), self.exchange_norm
        if self._exchanges_fused():
            context = self.exchange_context_norm(representative.squeeze(2))
            factors = drop_path_factors(local, self.drop_path_rate, self.training, draw_axes=1)
            return exchange(
                local, context, norm.weight, norm.bias, current(attn.qkv.weight), current(attn.q_bias),
                current(attn.v_bias), current(attn.proj.weight), current(attn.proj.bias), attn.num_heads,
                row_scale=factors, update=branch, update_scale=drawn, front=front, eps=LAYER_NORM_EPS,
            )  # fmt: skip
        update = attn.cross(local.flatten(1, 2), norm, representative.squeeze(2), self.exchange_context_norm)
        local = local + self._drop_per_clip(update.view(local.shape))
        return local if front is None else torch.cat((front, local), dim=2)

    def _exchange_attention(self) -> Attention:
        return self.exchange_attn if self.share_attention == "none" else self.local_attn

    def _mlp(self, stream: Residual) -> Residual:
        """The MLP of a stream's sum, left to be added."""
        if self.fused:
            return self._later(*self.mlp.of_stream(stream, self.mlp_norm))
        x = stream.added()
        return self._later(x, self.mlp(x, self.mlp_norm))

    def _representatives(self, x: Tensor) -> Residual:
        """The block's representative tokens (B, N, 1, C): what comes after the exchange changes local tokens alone."""
        representative = self._local_representative(x)
        if self.global_attention:
            representative = self._global(representative)
        return self._mlp(Residual(self._without(representative, "exchange_", self.exchange == "cross")))

    def _without(self, x: Tensor, step: str, exists: bool) -> Tensor:
        """``x`` with a step left out, whose names begin with ``step``: its parameters get zero gradients."""
        if not exists:
            return x
        # What stochastic depth would draw, so that the MLP's draws are those of the eager block.
        drop_path_factors(x, self.drop_path_rate, self.training, draw_axes=1)
        # What is shared with another step has another name.
        return with_zero_gradients(x, [value for name, value in self.named_parameters() if name.startswith(step)])

    def _later(self, x: Tensor, branch: Tensor) -> Residual:
        """``x`` and a branch of it, on which stochastic depth draws once a region."""
        return Residual(x, branch, drop_path_factors(branch, self.drop_path_rate, self.training, draw_axes=2))

    def _drop_per_clip(self, branch: Tensor) -> Tensor:
        return drop_path(branch, self.drop_path_rate, self.training, draw_axes=1)


def _split(stream: Residual) -> tuple[Residual, Residual]:
    """The representative and the local tokens of (B, N, S, C).

    Not by two slices: the gradient of each would be a tensor of S tokens, mostly zeros, to be added to the other's.
    """
    sizes = (1, stream.x.shape[2] - 1)
    xs = stream.x.split(sizes, dim=2)
    branches = (None, None) if stream.branch is None else stream.branch.split(sizes, dim=2)
    first, rest = (Residual(x, branch, stream.factors) for x, branch in zip(xs, branches, strict=True))
    return first, rest


def select(x: Tensor, wanted: str) -> Tensor:
    """``all``, the ``representative`` or the ``local`` tokens of (B, N, S, C)."""
    return {"all": x, "representative": x[:, :, :1], "local": x[:, :, 1:]}[wanted]


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
        self.patch_embed = PatchEmbed(
            config.embed_dim, config.tubelet_size, config.patch_size, fused=config.fused_attn
        )
        self.blocks = nn.ModuleList(
            LGIBlock(config, rate) for rate in drop_path_rates(config.drop_path_rate, config.depth)
        )
        position = sincos_positions(config.num_tokens, config.embed_dim)
        self.register_buffer("position", position, persistent=False)
        self.register_buffer("order", region_order(config.grid_size, config.region_size), persistent=False)

    def init_tokens(self, limit: float) -> None:
        """Representative tokens, by :func:`init_token`."""
        init_token(self.representative_tokens, limit)

    def visible_indices(self, mask: Tensor) -> Tensor:
        """(B, tokens) bool → (B, N·k) int64 raster indices of visible tokens, k of each region in turn."""
        return visible_by_region(mask, self.order).flatten(1)

    def forward(self, clip: Tensor, visible: Tensor | None = None, wanted: str = "all") -> Tensor:
        """Encodes a clip, or its visible tokens alone.

        Args:
            clip: (B, 3, frames, height, width).
            visible: (B, N·k) from :meth:`visible_indices`, or None for all tokens.
            wanted: ``all`` tokens, or the ``representative`` or ``local`` ones alone.

        Returns:
            (B, N, 1 + L, C), not normalised; of the representative tokens (B, N, 1, C), of the local (B, N, L, C).
            L is k where visible tokens alone are encoded.
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
        return through_blocks(self.blocks, x, self.config.residual_dtype, wanted)

    def local_tokens(self, clip: Tensor, visible: Tensor) -> Tensor:
        """Visible tokens (B, N·k, C): what the decoder reads."""
        return self(clip, visible, "local").flatten(1, 2)

    def pooled(self, clip: Tensor) -> Tensor:
        """(B, C), the mean over the tokens that ``config.pool`` names."""
        return self(clip, wanted=self.config.pool).mean(dim=(1, 2))
