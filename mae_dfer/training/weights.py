"""Starting a model from weights: our safetensors, a run folder, or a published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from .. import create_model
from ..checkpoint import LoadReport, load_into, load_official, load_pretrained_encoder, load_weights
from ..config import TrainConfig
from ..errors import UserError
from ..models import VideoClassifier, VideoModel
from .finetune import build_classifier
from .progress import console
from .run import RunFolder, find_weights


def start_from(model: VideoModel, path: Path | str, run: RunFolder) -> None:
    """Loads what fits of ``path`` into ``model``, and logs the names of the tensors taken, dropped and fresh.

    A pre-trained model hands its encoder to a classifier; anything else must match name for name.
    """
    pretraining = model.config.is_mae
    weights_path = find_weights(path, stages=("pretrain",) if pretraining else ("pretrain", "finetune"))
    report = _load(model, weights_path, pretraining)
    run.log(
        "init_from",
        path=str(weights_path),
        taken_over=report.loaded,
        dropped=report.dropped,
        fresh=report.fresh,
    )
    if run.write:
        console.print(
            f"from {weights_path}: {len(report.loaded)} tensors taken over, {len(report.dropped)} dropped, "
            f"fresh: {', '.join(report.fresh) or 'none'} (all names in log.jsonl)"
        )


def load_classifier(
    path: Path | str,
    *,
    fused_attn: bool = True,
    config: TrainConfig | None = None,
    classes: list[str] | None = None,
) -> tuple[VideoClassifier, dict[str, Any]]:
    """A trained classifier and its metadata (``classes``, ``stride``, ``data``), as its checkpoint describes it.

    A published checkpoint says nothing of its sizes: it takes those of ``config``, with ``classes``.
    """
    weights_path = find_weights(path, stages=("finetune",))
    if weights_path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UserError(f"{weights_path}: not a checkpoint; give a run folder, its .safetensors, or a published .pth")
    if weights_path.suffix != ".safetensors":
        if config is None or classes is None:
            raise UserError(
                f"{weights_path}: a published checkpoint does not say its classes; "
                "score it with python -m mae_dfer.train --stage evaluate --init-from it --data FOLDER"
            )
        model = build_classifier(config, len(classes))
        load_official(model, weights_path)
        return model, {"classes": classes, "data": config.data}
    tensors, metadata = load_weights(weights_path)
    if _is_mae(metadata["model"]["name"]) or "classes" not in metadata:
        raise UserError(
            f"{weights_path}: not a classifier; fine-tune it first (--stage finetune --init-from it)"
        )
    if classes is not None and metadata["classes"] != classes:
        raise UserError(
            f"{weights_path} was trained on other classes ({', '.join(metadata['classes'])}) than those to score "
            f"({', '.join(classes)}); names and order must agree with classes.txt"
        )
    settings = dict(metadata["model"])
    model = cast(VideoClassifier, create_model(settings.pop("name"), **settings | {"fused_attn": fused_attn}))
    load_into(model, tensors, source=str(weights_path))
    return model.eval(), metadata


def _load(model: VideoModel, path: Path, pretraining: bool) -> LoadReport:
    if path.suffix != ".safetensors":
        return load_official(model, path)
    tensors, metadata = load_weights(path)
    if _is_mae(metadata["model"]["name"]) and not pretraining:
        return load_pretrained_encoder(cast(VideoClassifier, model), tensors, source=str(path))
    return load_into(model, tensors, source=str(path))


def _is_mae(name: str) -> bool:
    return name.startswith("mae_")
