"""Whether a checkpoint is of a model of the sizes that are asked for, told in the options that give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import PRESETS, preset
from ..errors import UserError
from ..models import ModelConfig, configure_model, list_models
from .network import Network, read_network
from .own import is_own, load_weights

_COMPARED = ("is_vit", "embed_dim", "depth", "patch_size", "tubelet_size")


def check_sizes(config: ModelConfig, path: Path, weights: str = "auto") -> None:
    """Compares the encoder of a checkpoint, of this package or a published one, with that of a model.

    Raises:
        UserError: it is of other sizes; the message names them, and the options that give them. Or a file that cannot
            be read.
    """
    if is_own(path):
        given = _sizes_of(own := ModelConfig.from_dict(load_weights(path)[1]["model"]))
        _check_untold(config, own, path)
    else:
        given = _tell_sizes(read_network(path, weights))
    wanted = _sizes_of(config)
    misfit = f"{path} does not fit the model, whose tensors have other shapes"
    if any(given[name] != wanted[name] for name in _COMPARED):
        raise UserError(
            f"{misfit}: this file is {_describe(given)}, the model {_describe(wanted)}; give {_name_options(given)}"
        )
    if given["num_regions"] != wanted["num_regions"] and not config.is_vit:
        raise UserError(
            f"{misfit}: this file has {given['num_regions']} regions, the model {wanted['num_regions']}; "
            "give the --img-size, --num-frames and --region-size of its training"
        )


def _check_untold(config: ModelConfig, own: ModelConfig, path: Path) -> None:
    """Raises UserError where an encoder of the same tensors computes something else."""
    if own.num_heads != config.num_heads and own.embed_dim == config.embed_dim:
        raise UserError(f"{path} has {own.num_heads} attention heads, the model {config.num_heads}; give --num-heads")
    if own.num_regions == config.num_regions and _count_regions(own) != _count_regions(config) and not config.is_vit:
        raise UserError(
            f"{path} has regions of {own.region_size} tokens (time, height, width), {_count_regions(own)} of them a "
            f"clip, the model of {config.region_size}, {_count_regions(config)} a clip; give the --region-size, "
            "--img-size and --num-frames of its training"
        )


def _count_regions(config: ModelConfig) -> tuple[int, ...]:
    """In time, height and width."""
    return tuple(grid // region for grid, region in zip(config.grid_size, config.region_size, strict=True))


def _sizes_of(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*_COMPARED, "num_regions")}


def _tell_sizes(network: Network) -> dict[str, Any]:
    """What the tensors of a published network tell of its encoder."""
    prefix = "encoder." if network.is_pretraining else ""
    embed_dim, _, tubelet_size, patch_size, _ = network.shape(f"{prefix}patch_embed.proj.weight", 5)
    blocks = f"{prefix}blocks."
    regions = f"{prefix}lg_region_tokens"
    return {
        "is_vit": regions not in network.values,
        "embed_dim": embed_dim,
        "depth": len({name.removeprefix(blocks).split(".")[0] for name in network.values if name.startswith(blocks)}),
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "num_regions": network.shape(regions, 2)[0] if regions in network.values else None,
    }


def _describe(sizes: dict[str, Any]) -> str:
    kind = "a ViT, " if sizes["is_vit"] else ""
    patches = f", of patches of {sizes['patch_size']} pixels and {sizes['tubelet_size']} frames"
    usual = sizes["patch_size"] == ModelConfig.patch_size and sizes["tubelet_size"] == ModelConfig.tubelet_size
    return f"{kind}{sizes['embed_dim']} wide and {sizes['depth']} deep" + ("" if usual else patches)


def _name_options(sizes: dict[str, Any]) -> str:
    """The preset or the model of these sizes; or the sizes."""

    def fits(model: str) -> bool:
        known = _sizes_of(configure_model(model, {}))
        return all(known[name] == sizes[name] for name in _COMPARED)

    presets = [f"--preset {name}" for name in PRESETS if fits(preset(name).model)]
    models = [f"--model {name}" for name in list_models() if not name.startswith("mae_") and fits(name)]
    options = [f"--embed-dim {sizes['embed_dim']}", f"--depth {sizes['depth']}", f"--patch-size {sizes['patch_size']}"]
    kind = "--model vit_base_patch16_160 " if sizes["is_vit"] else ""
    return next(iter([*presets, *models]), kind + " ".join(options))
