"""Starting a model from weights: our safetensors, a run folder, or a published checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import create_classifier
from ..checkpoint import (
    LoadReport,
    check_sizes,
    describe_classifier,
    is_own,
    load_into,
    load_network,
    load_pretrained_encoder,
    read_network,
)
from ..config import TrainConfig
from ..data.sets import CLASSES
from ..errors import UserError
from ..models import VideoClassifier, VideoModel
from .checkpoints import find_weights, hash_file, load_checkpoint
from .finetune import build_classifier
from .progress import console
from .run import RunFolder

BEGINNINGS = ("pretrain", "finetune")  # of a run, whose checkpoints a classifier begins from: the first that it has
_HEAD = ("head.weight", "head.bias")  # our names, and the published ones


def start_from(
    model: VideoModel,
    path: Path | str,
    run: RunFolder,
    weights: str = "auto",
    classes: Sequence[str] | None = None,
) -> dict[str, str]:
    """Loads what fits of ``path`` into ``model``, and logs the names of the tensors taken, dropped and fresh.

    A pre-trained model hands its encoder to a classifier. A classifier hands its head to one of the same classes, each
    class its own row; to one of other classes it hands the rest. Anything else must match name for name.

    Args:
        path: a file, or a run folder: its newest pre-training checkpoint, or its newest classifier where there is none.
        weights: of a published checkpoint; see ``load_official``.
        classes: the names of the classes of ``model``.

    Returns:
        ``path`` of the file, and its ``sha256``; the latter for the main process alone.
    """
    pretraining = model.config.is_mae
    weights_path = find_weights(path, stages=("pretrain",) if pretraining else BEGINNINGS)
    report = _load(model, weights_path, weights, classes)
    init = {"path": str(weights_path), "sha256": hash_file(weights_path) if run.write else ""}
    run.log(
        "init_from",
        **init,
        taken_over=report.loaded,
        dropped=report.dropped,
        fresh=report.fresh,
    )
    if run.write:
        if report.note:
            console.print(report.note)
        classifiers = RunFolder(Path(path), write=False).list_checkpoints("finetune")
        if not pretraining and Path(path) != run.path and classifiers and classifiers[-1].weights != weights_path:
            console.print(f"{path} also holds a classifier: --init-from {classifiers[-1].weights} starts from that")
        console.print(
            f"from {weights_path}: {len(report.loaded)} tensors taken over, {len(report.dropped)} dropped, "
            f"fresh: {', '.join(report.fresh) or 'none'} (all names in log.jsonl)"
        )
    return init


def load_classifier(
    path: Path | str,
    *,
    fused_attn: bool = True,
    config: TrainConfig | None = None,
    classes: list[str] | None = None,
    classes_from: str = "classes.txt",
    weights: str = "auto",
    say: Callable[[str], Any] = console.print,
) -> tuple[VideoClassifier, dict[str, Any]]:
    """A trained classifier and its metadata (``classes``, ``stride``; ours also have ``data``).

    Args:
        path: a run folder, one of its files, or a published checkpoint.
        config: for a published checkpoint, the settings that its tensors do not tell: frames, regions, pooling, stride.
            Where it sets what they do tell, it must agree with them.
        classes: the classes' names. A checkpoint of ours must have the same; a published one has none.
        classes_from: where ``classes`` come from, for messages.
        weights: ``auto``, ``model`` or ``ema``; see ``load_official``.
        say: is told what was assumed of a published checkpoint.

    Raises:
        UserError: not a classifier, or one of other classes or sizes.
    """
    weights_path = find_weights(path, stages=("finetune",))
    if not is_own(weights_path):
        return _load_published(weights_path, config, classes, classes_from, weights, say)
    _refuse_average(weights_path, weights)
    tensors, metadata = load_checkpoint(weights_path)
    if _is_mae(metadata["model"]["name"]) or "classes" not in metadata:
        raise UserError(_not_a_classifier(weights_path))
    if classes is not None and metadata["classes"] != classes:
        raise UserError(
            f"{weights_path} was trained on other classes ({', '.join(metadata['classes'])}) than those of "
            f"{classes_from} ({', '.join(classes)}); names and order must agree"
        )
    settings = dict(metadata["model"])
    model = create_classifier(settings.pop("name"), **settings | {"fused_attn": fused_attn})
    load_into(model, tensors, source=str(weights_path))
    return model.eval(), metadata


def _load_published(
    path: Path,
    config: TrainConfig | None,
    classes: list[str] | None,
    classes_from: str,
    weights: str,
    say: Callable[[str], Any],
) -> tuple[VideoClassifier, dict[str, Any]]:
    network = read_network(path, weights)
    if network.is_pretraining:
        raise UserError(_not_a_classifier(path))
    if config is None or classes is None:
        raise UserError(
            f"{path} does not say its classes; give --classes with one of {', '.join(CLASSES)}, "
            "or a file with one class name per line"
        )
    name, told = describe_classifier(network)
    if told["num_classes"] != len(classes):
        raise UserError(f"{path} has {told['num_classes']} outputs; {classes_from} has {len(classes)} classes")
    if config.model == TrainConfig.model:  # none was asked for by name: it is the one that the tensors tell
        model = create_classifier(name, **told | config.model_overrides(pretraining=False))
    else:
        model = build_classifier(config, len(classes))
    sizes = model.config
    if "lg_region_tokens" in network.values and not sizes.is_vit:
        regions, _ = network.shape("lg_region_tokens", 2)
        if regions != sizes.num_regions:
            raise UserError(
                f"{path} has {regions} regions; {sizes.num_frames} frames of {sizes.img_size[0]} × {sizes.img_size[1]} "
                f"pixels in regions of {sizes.region_size} tokens have {sizes.num_regions}: "
                "give the --img-size, --num-frames and --region-size of its training (--preset base has the paper's)"
            )
    check_sizes(sizes, path, weights)
    report = load_network(model, network)
    if report.note:
        say(report.note)
    say(
        f"{path} does not say what its clips are; assumed: {sizes.num_frames} frames of {sizes.img_size[0]} × "
        f"{sizes.img_size[1]} pixels at stride {config.stride}, {sizes.num_heads} heads, mean of {sizes.pool} tokens"
    )
    return model.eval(), {"classes": classes, "stride": config.stride}


def _load(model: VideoModel, path: Path, weights: str, classes: Sequence[str] | None) -> LoadReport:
    check_sizes(model.config, path, weights)
    source = str(path)
    if not is_own(path):
        network = read_network(path, weights)
        if model.config.is_mae or network.is_pretraining:
            return load_network(model, network)
        return _load_by_class(
            lambda tensors: load_network(model, replace(network, values=tensors)),
            model, network.values, None, classes, source,
        )  # fmt: skip
    _refuse_average(path, weights)
    tensors, metadata = load_checkpoint(path)
    if model.config.is_mae:
        return load_into(model, tensors, source=source)
    if _is_mae(metadata["model"]["name"]) and isinstance(model, VideoClassifier):
        return load_pretrained_encoder(model, tensors, source=source)
    return _load_by_class(
        lambda tensors: load_into(model, tensors, source=source),
        model, tensors, metadata.get("classes"), classes, source,
    )  # fmt: skip


def _load_by_class(
    load: Callable[[dict[str, Any]], LoadReport],
    model: VideoModel,
    tensors: Mapping[str, Any],
    theirs: Sequence[str] | None,
    classes: Sequence[str] | None,
    source: str,
) -> LoadReport:
    """Loads a classifier, with its head only where that fits.

    Args:
        theirs, classes: the classes' names, of the file and of ``model``; None where they are not known.
    """
    bias = tensors.get("head.bias")
    if not isinstance(bias, torch.Tensor) or (theirs is not None and classes is None):
        return load(dict(tensors))
    if theirs is None and len(bias) == model.config.num_classes:
        report = load(dict(tensors))
        note = "does not name its classes; its outputs are taken for those of --data, in this order"
    elif theirs is not None and classes is not None and sorted(theirs) == sorted(classes):
        rows = [theirs.index(name) for name in classes]
        report = load({**tensors, **{name: tensors[name][rows] for name in _HEAD}})
        note = f"has the same classes in another order ({', '.join(theirs)}); its outputs were reordered"
        note = "" if list(theirs) == list(classes) else note
    else:
        fresh = model.state_dict()
        report = load({**tensors, **{name: fresh[name] for name in _HEAD}})
        report.loaded = [name for name in report.loaded if name not in _HEAD]
        report.dropped, report.fresh = [*report.dropped, *_HEAD], [*report.fresh, *_HEAD]
        names = ", ".join(theirs) if theirs is not None else f"{len(bias)}"
        note = f"was trained on other classes ({names}); the head starts untrained"
    report.note = "; ".join(part for part in (report.note, note and f"{source} {note}") if part)
    return report


def _refuse_average(path: Path, weights: str) -> None:
    if weights == "ema":
        raise UserError(f"{path} holds no moving average of the weights; leave out --weights ema")


def _not_a_classifier(path: Path) -> str:
    return (
        f"{path} is a pre-training checkpoint, not a classifier; "
        "fine-tune from it first: python -m mae_dfer.train --stage finetune --init-from it --data FOLDER"
    )


def _is_mae(name: str) -> bool:
    return name.startswith("mae_")
