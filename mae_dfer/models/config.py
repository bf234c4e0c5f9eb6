"""Every size and option of a model, checked when it is made and kept on the model as ``model.config``.

Letters: T, H, W token grid; t, h, w region size in tokens.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

CHOICES: dict[str, tuple[str, ...]] = {
    "local_attention": ("self", "representative"),
    "exchange": ("cross", "self", "none"),
    "share_attention": ("none", "local_exchange", "all"),
    "pool": ("representative", "local", "all"),
    "residual_dtype": ("parameters", "autocast"),
    "decoder_positions": ("aligned", "published"),
}
_LARGEST = 10**9  # of any size; far beyond what fits into memory, which is told when a model is made
_SHOWN = 16  # divisors in a message
_DECODER_FIELDS = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_positions")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of one model. Defaults are the paper's LGI-Former (arXiv 2307.02227, section 4.1).

    ``name`` says which model: ``lgi_former…`` or ``vit…``, with ``mae_`` in front for pre-training.

    Attributes:
        img_size: frame size in pixels, one int or (height, width); kept as (height, width).
        num_frames: frames of a clip.
        patch_size: side of a patch in pixels.
        tubelet_size: frames of a patch.
        embed_dim, depth, num_heads, mlp_ratio: width, blocks, heads and MLP expansion of the encoder.
        num_classes: outputs of the classifier; 0: no head, so that the features come out. Pre-training models have no
            use for it.
        region_size: (t, h, w) tokens of a local region, each dividing the grid. A ViT has no regions.
        local_attention: step 1 of the LGI block. ``self``: all tokens of a region attend to each other;
            ``representative``: only the representative token attends, to its region's local tokens.
        global_attention: whether step 2, attention among the clip's representative tokens, is there.
        exchange: step 3. ``cross``: local tokens query all representative tokens; ``self``: self-attention
            inside regions again; ``none``: left out.
        share_attention: which attentions of a block are one set of weights: ``none``, ``local_exchange``
            (steps 1 and 3), or ``all``.
        pool: tokens that the classifier averages. A ViT averages ``all``.
        drop_path_rate: stochastic depth of the encoder's last block; rises linearly from 0 in the first.
        drop_rate: dropout after the position table, output projections and MLPs of the encoder.
        attn_drop_rate: dropout on the encoder's attention probabilities.
        fused_attn: fused attention (``mae_dfer_kernels`` and SDPA), or explicit softmax everywhere. The
            parameters are the same.
        residual_dtype: of the residual streams. ``parameters``: that of the parameters, and so float32 under
            autocast, as plain PyTorch has it; ``autocast``: autocast's where it is on, which halves the memory that
            blocks read, write and keep, and rounds every addition.
        decoder_embed_dim, decoder_depth, decoder_num_heads: the decoder of pre-training models.
        decoder_positions: ``aligned``: visible tokens get the positions they come from. ``published``: as in
            the published pre-training code, which adds positions in raster order to tokens in region order;
            for its checkpoints only.

    Raises:
        UserError: a value that is out of range, does not divide, or contradicts another.
    """

    name: str
    img_size: tuple[int, int] = (160, 160)
    num_frames: int = 16
    patch_size: int = 16
    tubelet_size: int = 2
    embed_dim: int = 512
    depth: int = 16
    num_heads: int = 8
    mlp_ratio: float = 4.0
    num_classes: int = 7
    region_size: tuple[int, int, int] = (2, 5, 10)
    local_attention: str = "self"
    global_attention: bool = True
    exchange: str = "cross"
    share_attention: str = "none"
    pool: str = "representative"
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    fused_attn: bool = True
    residual_dtype: str = "parameters"
    decoder_embed_dim: int = 384
    decoder_depth: int = 4
    decoder_num_heads: int = 6
    decoder_positions: str = "aligned"

    @property
    def is_mae(self) -> bool:
        """Whether this is a pre-training model (encoder and decoder)."""
        return self.name.startswith("mae_")

    @property
    def is_vit(self) -> bool:
        """Whether the encoder is VideoMAE's ViT (joint attention, no regions)."""
        return self.name.removeprefix("mae_").startswith("vit")

    @property
    def grid_size(self) -> tuple[int, int, int]:
        """(T, H, W) tokens of a clip."""
        height, width = self.img_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        time, height, width = self.grid_size
        return time * height * width

    @property
    def num_regions(self) -> int:
        """Regions of a clip, which is also its number of representative tokens."""
        return self.num_tokens // (self.region_size[0] * self.region_size[1] * self.region_size[2])

    @property
    def patch_dim(self) -> int:
        """Pixel values of one patch over all its frames and colours."""
        return self.tubelet_size * self.patch_size**2 * 3

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``name`` and the keyword overrides with which ``create_model`` rebuilds this model."""
        values = dataclasses.asdict(self)
        if not self.is_mae:
            for field in _DECODER_FIELDS:
                del values[field]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ModelConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: a name that is no setting of this model (with the nearest that is), or a bad value.
        """
        if "name" not in values:
            raise UserError("these model settings lack 'name', the model they are of")
        known = override_names(str(values["name"]))
        for name in values:
            if name != "name" and name not in known:
                raise UserError(unknown("model option", name, known))
        return ModelConfig(**values)

    def __post_init__(self) -> None:
        _check_types(self)
        _check_limits(self)
        _check_ranges(self)
        _check_divides(self)
        _check_options(self)


def override_names(model_name: str) -> list[str]:
    """What may be set on the model of this name, besides the name."""
    fields = [field.name for field in dataclasses.fields(ModelConfig) if field.name != "name"]
    return fields if model_name.startswith("mae_") else [name for name in fields if name not in _DECODER_FIELDS]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist: the nearest that does, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {name!r}{hint} (there are: {', '.join(known)})"


def _set(config: ModelConfig, name: str, value: Any) -> None:
    object.__setattr__(config, name, value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_types(config: ModelConfig) -> None:
    """Each field has the type of its default; lists (from JSON) become tuples, one img_size a square."""
    if _whole(config.img_size):
        _set(config, "img_size", (config.img_size, config.img_size))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("img_size", "region_size"):
            axes = ("height", "width") if field.name == "img_size" else ("time", "height", "width")
            if not isinstance(value, (tuple, list)) or len(value) != len(axes) or not all(map(_whole, value)):
                raise UserError(f"{field.name} must be {len(axes)} whole numbers ({', '.join(axes)}), got {value!r}")
            _set(config, field.name, tuple(value))
        elif isinstance(field.default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{field.name} must be True or False, got {value!r}")
        elif isinstance(field.default, int):
            if not _whole(value):
                raise UserError(f"{field.name} must be a whole number, got {value!r}")
        elif isinstance(field.default, float):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise UserError(f"{field.name} must be a number, got {value!r}")
            _set(config, field.name, float(value))
        elif field.name in CHOICES and value not in CHOICES[field.name]:
            raise UserError(unknown(f"value of {field.name}", value, CHOICES[field.name]))


def _check_limits(config: ModelConfig) -> None:
    """Every number is one, and not so large that arithmetic on it would not end."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (bool, str)) and not abs(number) <= _LARGEST:
                raise UserError(f"{field.name} must be at most {_LARGEST:,}, got {value}")


def _check_ranges(config: ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_rate"):
            if not 0.0 <= value < 1.0:
                raise UserError(f"{field.name} must be at least 0 and below 1, got {value}")
        elif isinstance(value, tuple):
            if min(value) < 1:
                raise UserError(f"{field.name} must be positive, got {value}")
        elif field.name == "num_classes":
            if value < 0:
                raise UserError(f"num_classes must be 0 (features instead of logits) or more, got {value}")
        elif not isinstance(value, (bool, str)) and value <= 0:
            raise UserError(f"{field.name} must be positive, got {value}")


def _check_divides(config: ModelConfig) -> None:
    """Frames into tubelets, pixels into patches, channels into heads, tokens into regions."""
    if config.num_frames % config.tubelet_size:
        raise UserError(
            f"num_frames {config.num_frames} is not a multiple of tubelet_size {config.tubelet_size}; "
            f"take {_nearest_multiples(config.num_frames, config.tubelet_size)}"
        )
    for axis, size in zip(("height", "width"), config.img_size, strict=True):
        if size % config.patch_size:
            raise UserError(
                f"img_size {axis} {size} is not a multiple of patch_size {config.patch_size}; "
                f"take {_nearest_multiples(size, config.patch_size)}"
            )
    heads = [("embed_dim", config.embed_dim, "num_heads", config.num_heads)]
    if config.is_mae:
        heads.append(("decoder_embed_dim", config.decoder_embed_dim, "decoder_num_heads", config.decoder_num_heads))
    for width_name, width, heads_name, number in heads:
        if width % number:
            raise UserError(
                f"{width_name} {width} is not a multiple of {heads_name} {number}; "
                f"take {_nearest_multiples(width, number)}"
            )
    if not config.is_vit and any(size % part for size, part in zip(config.grid_size, config.region_size, strict=True)):
        fits = [f"{axis} {_divisors(size)}" for axis, size in zip("thw", config.grid_size, strict=True)]
        raise UserError(
            f"region_size {config.region_size} does not divide the token grid {config.grid_size}; "
            f"sizes that do: {', '.join(fits)}"
        )


def _check_options(config: ModelConfig) -> None:
    """Options that contradict each other or the kind of model."""
    if config.is_mae and config.tubelet_size < 2:
        raise UserError("tubelet_size must be at least 2 for pre-training: its motion target needs two frames")
    if config.is_vit:
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        for name in ("local_attention", "global_attention", "exchange", "share_attention"):
            if getattr(config, name) != defaults[name]:
                raise UserError(f"{name} is an option of lgi_former models; {config.name} attends jointly")
        if config.pool != "all":
            raise UserError(f"pool={config.pool!r} needs regions; {config.name} averages 'all' tokens")
    if config.share_attention == "local_exchange" and config.exchange == "none":
        raise UserError("share_attention='local_exchange' has nothing to share with exchange='none'")
    if config.share_attention == "all" and config.exchange == "none" and not config.global_attention:
        raise UserError("share_attention='all' has nothing to share with exchange='none' and global_attention=False")


def _nearest_multiples(size: int, unit: int) -> str:
    below, above = size // unit * unit, (size // unit + 1) * unit
    return f"{below} or {above}" if below else str(above)


def _divisors(size: int) -> str:
    small = [part for part in range(1, math.isqrt(size) + 1) if size % part == 0]
    found = sorted({*small, *(size // part for part in small)})
    return "/".join(map(str, found[:_SHOWN])) + ("/…" if len(found) > _SHOWN else "")
