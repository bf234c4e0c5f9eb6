"""Parts that both encoders and the decoder are made of.

Letters: B clips, T, H, W token grid, S tokens of a sequence, K of its context, C channels, D channels
a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_dfer_kernels import region_attention
from mae_dfer_kernels.calls import autocast_dtype

from .casts import current
from .linear import Linear, linear
from .mlp import norm_mlp
from .recompute import norm_linear, normalise, spread
from .residual import Residual

LAYER_NORM_EPS = 1e-6


def layer_norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def linear_layer(width: int, out_width: int, *, bias: bool = True, fused: bool = True) -> nn.Linear:
    return (Linear if fused else nn.Linear)(width, out_width, bias=bias)


def sincos_positions(num_tokens: int, dim: int) -> Tensor:
    """(tokens, dim) float32 position table.

    Entry j of position p is the sine (even j) or cosine (odd j) of p / 10000^(2⌊j/2⌋/dim), computed in
    float64.
    """
    position = torch.arange(num_tokens, dtype=torch.float64).unsqueeze(1)
    column = torch.arange(dim)
    angle = position / 10000.0 ** (2 * (column // 2).double() / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def patchify(clip: Tensor, tubelet: int, patch: int) -> Tensor:
    """(B, 3, frames, height, width) → (B, T·H·W, 3·tubelet·patch·patch), in the order of a Conv3d kernel."""
    batch, colours, frames, height, width = clip.shape
    split = clip.reshape(
        batch, colours, frames // tubelet, tubelet, height // patch, patch, width // patch, patch
    ).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return split.reshape(batch, -1, colours * tubelet * patch * patch)


class PatchEmbed(nn.Module):
    """Tubelets to tokens: a Conv3d whose stride is its kernel, as one matrix product on unfolded patches.

    The parameters are a Conv3d's. Unfolding lets pre-training embed the visible patches alone, a tenth of the
    work.
    """

    def __init__(self, dim: int, tubelet: int, patch: int, *, fused: bool = True) -> None:
        super().__init__()
        self.tubelet, self.patch, self.fused = tubelet, patch, fused
        self.proj = nn.Conv3d(3, dim, kernel_size=(tubelet, patch, patch), stride=(tubelet, patch, patch))

    def forward(self, patches: Tensor) -> Tensor:
        """(…, 3·tubelet·patch·patch) from :func:`patchify` → (…, C)."""
        multiply = linear if self.fused else F.linear
        return multiply(patches, self.proj.weight.flatten(1), self.proj.bias)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, linear, dropout.

    Args:
        fused: LayerNorm's and GELU's output are not kept for the backward. The parameters are the same.
    """

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float = 0.0, *, fused: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop_rate, self.fused = drop_rate, fused

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Of ``norm(x)``: (…, C) → (…, C)."""
        if self.fused:
            return self.of_stream(Residual(x), norm)[1]
        return F.dropout(self.fc2(F.gelu(self.fc1(norm(x)))), self.drop_rate, self.training)

    def of_stream(self, stream: Residual, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The stream's sum x, and :meth:`forward` of it, fused."""
        x, out = norm_mlp(stream, norm, self.fc1, self.fc2)
        return x, F.dropout(out, self.drop_rate, self.training)


class Attention(nn.Module):
    """Multi-head self- or cross-attention; q and v have a bias, k has none.

    One packed ``qkv.weight`` (3C, C) serves both: cross-attention takes its first C rows for queries, the
    rest for keys and values.

    Args:
        init_split: thirds of ``qkv.weight`` that are initialised as one matrix, since Xavier's range depends
            on the rows. (1, 2) where the published code keeps q and kv apart, (3,) where it packs them.
        fused: fused kernels, or explicit softmax. The parameters are the same.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        fused: bool = True,
        init_split: tuple[int, ...] = (3,),
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop_rate, self.drop_rate = attn_drop_rate, drop_rate
        self.fused, self.init_split = fused, init_split
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = linear_layer(dim, dim, fused=fused)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Self-attention of ``norm(x)`` over the second last axis; leading axes are independent.

        Args:
            x: (…, S, C).
            norm: the LayerNorm in front of it.

        Returns:
            (…, S, C).
        """
        return self._output(self._mixed(x.reshape(-1, *x.shape[-2:]), norm)).view(x.shape)

    def of_stream(self, stream: Residual, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """The stream's sum x, and :meth:`forward` of it, fused."""
        x, packed = stream.norm_linear(norm, current(self.qkv.weight), self._bias("qkv"))
        mixed = self._mix(packed.view(-1, *packed.shape[-2:]))
        return x, self._output(mixed).view(x.shape)

    def of_last(self, x: Tensor, norm: nn.LayerNorm, wanted: int) -> Tensor:
        """The last ``wanted`` tokens of :meth:`forward`'s result for x (R, S, C), at less cost."""
        if self._takes_kernel(x):
            # The region kernel has all queries; the others' rows would cost more to leave out than to make.
            return self._output(self._mixed(x, norm)[:, -wanted:])
        return self.cross(x[:, -wanted:], norm, x, norm)

    def _mixed(self, rows: Tensor, norm: nn.LayerNorm) -> Tensor:
        return self._mix(self._project(rows, norm, current(self.qkv.weight), self._bias("qkv")))

    def _mix(self, packed: Tensor) -> Tensor:
        """Self-attention from the packed projection (R, S, 3C)."""
        if self._takes_kernel(packed):
            return self._regional(packed)
        return self._attend(*packed.chunk(3, dim=-1))

    def _takes_kernel(self, rows: Tensor) -> bool:
        """Whether self-attention of (R, S, C) is given to the region kernel.

        Not if torch.compile would have to trace its dropout: reading the seed would break the graph.
        """
        drops = self.training and self.attn_drop_rate > 0.0
        traced = drops and torch.compiler.is_compiling()
        return self.fused and not traced and rows.shape[1] <= longest_region(rows.device)

    def cross(self, x: Tensor, norm: nn.LayerNorm, context: Tensor, context_norm: nn.LayerNorm) -> Tensor:
        """``norm(x)`` (…, S, C) attends to ``context_norm(context)`` (…, K, C) → (…, S, C)."""
        rows, context = x.reshape(-1, *x.shape[-2:]), context.reshape(-1, *context.shape[-2:])
        if self.fused and rows.shape[1] == 1 and folding_pays(context.shape[1], x.shape[-1], self.num_heads):
            return self._output(self._folded(rows, norm, context, context_norm)).view(x.shape)
        query_weight, key_value_weight = current(self.qkv.weight).split((x.shape[-1], 2 * x.shape[-1]))
        query = self._project(rows, norm, query_weight, current(self.q_bias))
        key, value = self._project(context, context_norm, key_value_weight, self._bias("kv")).chunk(2, dim=-1)
        return self._output(self._attend(query, key, value)).view(x.shape)

    def _project(self, x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> Tensor:
        return norm_linear(x, norm, weight, bias) if self.fused else F.linear(norm(x), weight, bias)

    def _output(self, mixed: Tensor) -> Tensor:
        return F.dropout(self.proj(mixed), self.drop_rate, self.training)

    def _bias(self, parts: str) -> Tensor:
        query, value = current(self.q_bias), current(self.v_bias)
        given = {"q": query, "k": torch.zeros_like(value), "v": value}
        return torch.cat([given[part] for part in parts])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(D^-½ q kᵀ) v for (R, S, C) queries and (R, K, C) keys and values."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        drop_rate = self.attn_drop_rate if self.training else 0.0
        # For a single query SDPA gains nothing, and on a CPU it has no second derivative.
        if self.fused and q.shape[-2] > 1:
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop_rate)
        else:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
            mixed = F.dropout(weights, drop_rate) @ v if drop_rate else weights @ v
        return mixed.transpose(1, 2).flatten(2)

    def _folded(self, x: Tensor, norm: nn.LayerNorm, context: Tensor, context_norm: nn.LayerNorm) -> Tensor:
        """What ``norm(x)`` (R, 1, C) reads of ``context_norm(context)`` (R, K, C), not yet projected → (R, 1, C).

        A head's scores are ``context_norm(context) · (W_kᵀ q)``, and what it reads is ``W_v`` times a weighted sum of
        ``context_norm(context)``: no keys and values are made, kept, or copied to put heads apart.
        """
        regions, _, channels = x.shape
        heads, dtype = (self.num_heads, channels // self.num_heads), autocast_dtype(x)
        query_weight, *others = current(self.qkv.weight).to(dtype).split(channels)
        key_weight, value_weight = (weight.view(*heads, channels) for weight in others)
        query = self._project(x, norm, query_weight, current(self.q_bias)) * heads[1] ** -0.5
        normed = normalise(context, None, None, context_norm.weight, context_norm.bias, context_norm.eps, dtype)[1]
        # Weights are multiplied head by head, tokens region by region: (H, R, …) and (R, H, …) are views of each other,
        # which batched products read without a copy.
        folded = torch.bmm(query.view(regions, *heads).transpose(0, 1), key_weight)
        weights = torch.bmm(folded.transpose(0, 1), normed.transpose(1, 2)).softmax(dim=-1)
        bias = current(self.v_bias).to(dtype)
        if self.training and self.attn_drop_rate:
            weights = F.dropout(weights, self.attn_drop_rate)
            # Their sum is no longer 1, and each value has the bias.
            bias = (weights.sum(dim=-1, keepdim=True) * bias.view(heads)).to(dtype).reshape(x.shape)
        read = torch.bmm(weights.to(dtype), normed)
        mixed = torch.bmm(read.transpose(0, 1), value_weight.transpose(1, 2))
        return mixed.transpose(0, 1).reshape(x.shape) + bias

    def _regional(self, packed: Tensor) -> Tensor:
        """The region kernel on (R, S, 3C). Its dropout is keyed by a seed of torch's CPU generator."""
        if not (self.training and self.attn_drop_rate):
            return region_attention(packed, self.num_heads)
        # Read on the CPU, it costs a GPU no synchronisation.
        seed = int(torch.randint(2**63 - 1, (), device="cpu").item())
        return region_attention(packed, self.num_heads, dropout_p=self.attn_drop_rate, seed=seed)


def folding_pays(context: int, channels: int, num_heads: int) -> bool:
    """Whether one query of a context multiplies less with the key and the value weights folded around it.

    Keys and values of K tokens take 2·K·C·C multiplications. Q queries and what they read, times the same weights, take
    2·Q·C·C, but each of H heads then scores and reads C channels, where it had D: 2·Q·K·(H - 1)·C more. That is less
    where Q·(C + (H - 1)·K) < K·C; here Q = 1.
    """
    return channels + (num_heads - 1) * context < context * channels


def longest_region(device: torch.device) -> int:
    """Up to how many tokens attention is given to the region kernel; beyond, to PyTorch's.

    On a CPU it was faster at every length that it takes (at 800 tokens, 6 heads of 64, two clips, 1.3 times as fast as
    `scaled_dot_product_attention`). On a GPU it is made for regions that fit a tile.
    """
    return 1024 if device.type == "cpu" else 128


def drop_path(x: Tensor, rate: float, training: bool, draw_axes: int) -> Tensor:
    """Stochastic depth: zeroes whole branches, one draw per element of the first ``draw_axes`` axes.

    Those kept are divided by the probability of being kept.
    """
    factors = drop_path_factors(x, rate, training, draw_axes)
    return x if factors is None else x * spread(factors, x)


def drop_path_factors(x: Tensor, rate: float, training: bool, draw_axes: int) -> Tensor | None:
    """What :func:`drop_path` multiplies by, of the shape of the first ``draw_axes`` axes; None for 1."""
    if not training or rate == 0.0:
        return None
    return x.new_empty(x.shape[:draw_axes]).bernoulli_(1.0 - rate).div_(1.0 - rate)


def drop_path_rates(last: float, depth: int) -> list[float]:
    """0 in the first block rising linearly to ``last`` in the last."""
    return [last * index / max(depth - 1, 1) for index in range(depth)]


def init_finetuning(model: nn.Module) -> None:
    """Linear layers: normal, 0.02; biases 0. The patch embedding keeps PyTorch's initial values, as published."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_token(token: Tensor, limit: float) -> None:
    """A learnable token: normal, 0.02, drawn again beyond ± ``limit``."""
    nn.init.trunc_normal_(token, std=0.02, a=-limit, b=limit)


def init_pretraining(model: nn.Module) -> None:
    """Linear layers: Xavier uniform; biases 0. The patch embedding keeps PyTorch's initial values, as published."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Attention):
            dim = module.qkv.in_features
            for part in module.qkv.weight.data.split([thirds * dim for thirds in module.init_split]):
                nn.init.xavier_uniform_(part)
