"""What a run refuses before it trains, rather than at the turn of a later stage, hours on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ..cli import letters
from ..config import RECIPES, TrainConfig
from ..data import ClipConfig, DatasetFolder, Sample, check_containers, open_video
from ..data.prepared import find_lists
from ..errors import UserError
from ..files import printable
from ..models import ModelConfig, configure_model
from ..models.memory import bytes_to_train, check_fits, describe_size
from ..models.regions import region_order, visible_by_region
from ..notes import Say, print_note
from .hardware import Hardware
from .inputs import clip_config, steps_per_epoch

_LOOKED_AT = 1000  # videos of a list to train on, to see whether they exist
_OPENED = 200  # of them, to see whether they open
_PROBED = 4000  # test videos, to see whether they open
_NAMED = 5


def stages(config: TrainConfig) -> tuple[str, ...]:
    """The stages of training that a run goes through."""
    return {"all": ("pretrain", "finetune"), "evaluate": ()}.get(config.stage, (config.stage,))


def check_models(config: TrainConfig, hardware: Hardware) -> ModelConfig:
    """The configuration of the classifier, or of what a run of pre-training alone trains.

    Raises:
        UserError: a model or a batch that is impossible, or that is larger than the memory, in any stage of the run.
    """
    models = {"finetune": configure_classifier(config)} if config.stage != "pretrain" else {}
    if "pretrain" in stages(config):
        models["pretrain"] = configure_autoencoder(config)
    for stage in stages(config):
        visible = 1.0 - config.pretrain.mask_ratio if stage == "pretrain" else 1.0
        clips = _check_batch(config, stage, hardware.world_size)
        check_fits(
            bytes_to_train(models[stage], clips, visible),
            hardware.device,
            f"training {describe_size(models[stage])} on {clips} clips at a time",
            f"give a smaller --{stage}-batch-size, or smaller sizes",
        )
    return models.get("finetune") or models["pretrain"]


def configure_classifier(config: TrainConfig) -> ModelConfig:
    overrides = config.model_overrides(pretraining=False) | {"drop_path_rate": config.finetune.drop_path}
    return configure_model(config.model, overrides)


def configure_autoencoder(config: TrainConfig) -> ModelConfig:
    return configure_model(f"mae_{config.model}", config.model_overrides(pretraining=True))


def _check_batch(config: TrainConfig, stage: str, processes: int) -> int:
    """How many clips each process computes at a time."""
    size = getattr(config, stage).batch_size
    if size % processes:
        raise UserError(f"--{stage}-batch-size {size} does not divide among {processes} processes")
    clips = size // processes
    if stage == "finetune" and clips % 2 and (config.finetune.mixup or config.finetune.cutmix):
        raise UserError(
            f"mixup and cutmix work on pairs of clips, and --finetune-batch-size {size} gives {clips} to each of "
            f"{processes} processes: give a multiple of {2 * processes}, or both as 0"
        )
    return clips


def check_inputs(config: TrainConfig, data: DatasetFolder, model: ModelConfig, hardware: Hardware) -> None:
    """Refuses clips and lists with which a stage of the run would fail.

    Raises:
        UserError: a mask or augmentation that is impossible, a set that does not fill a batch, a class without clips to
            train on, videos that are not there, test videos that do not open. Every test video must exist; of those to
            train on, as many as ``--max-bad-files`` may be missing.
    """
    clips = clip_config(config, model)
    if "pretrain" in stages(config):
        clips.transform("pretrain")
        _check_mask(clips, model)
        steps_per_epoch(len(data.pretrain), config.pretrain.batch_size, "--pretrain-batch-size")
        hardware.decide(lambda: _check_sample("pre-training", data.pretrain, config, config.pretrain.face_box))
    if "finetune" in stages(config):
        clips.transform("finetune")
        steps_per_epoch(len(data.train), config.finetune.batch_size, "--finetune-batch-size")
        _check_classes(data, config.allow_empty_classes)
        hardware.decide(lambda: _check_sample("training", data.train, config))
    if config.stage != "pretrain":
        missing = [sample.path for sample in data.test if not os.path.exists(sample.path)]
        if missing:
            raise _missing("test", len(missing), len(data.test), missing[0])
        hardware.decide(lambda: _check_readable(data.test))
    if hardware.is_main:
        _tell_overlap(data)


def check_description(config: TrainConfig, data: DatasetFolder, given: Collection[str], say: Say) -> None:
    """Compares what dataset.json says of the clips with the recipe; tells a stride that they do not want.

    Args:
        given: the options on the command line: a stride among them is meant.

    Raises:
        UserError: the recipe is of another set, or takes frames at another stride than the clips want.
    """
    found, stride = data.description, data.description.stride
    if config.recipe and found.set and letters(found.set) != letters(config.recipe):
        other = next((name for name in RECIPES if letters(name) == letters(found.set)), None)
        raise UserError(
            f"{data.folder / 'dataset.json'} says that this is {found.set}, and --recipe {config.recipe} is of another "
            f"set; {f'give --recipe {other}' if other else 'leave it out'}"
        )
    if found.verdict and found.verdict.startswith("not fit"):
        say(f"{data.folder} is {printable(found.verdict, 300)} (see report.html there)")
    if stride in (None, config.stride) or "stride" in given:
        return
    kind = f" ({found.clips})" if found.clips else ""
    clips = f"{data.folder / 'dataset.json'}: its clips{kind} want --stride {stride}"
    if config.stage == "evaluate":  # it takes the stride of its classifier
        return
    if config.recipe:
        raise UserError(
            f"{clips}, and --recipe {config.recipe} has --stride {config.stride}: "
            f"give --stride {stride}, or --stride {config.stride} if you mean that"
        )
    say(f"{clips}, and this run has --stride {config.stride}")


def _check_mask(clips: ClipConfig, model: ModelConfig) -> None:
    mask = clips.draw_mask(np.random.default_rng(0))
    if mask is not None and not model.is_vit:
        try:
            visible_by_region(mask[None], region_order(model.grid_size, model.region_size))
        except UserError:
            raise UserError(
                f"--pretrain-mask {clips.mask} leaves other numbers of tokens visible from one region to the next, and "
                f"{model.name} needs the same: leave it at region_window_tube, or give a vit model"
            ) from None


def _check_classes(data: DatasetFolder, may_be_empty: bool) -> None:
    if len(data.classes) < 2:
        raise UserError(f"{data.folder / 'classes.txt'} names one class, and a classifier tells two or more apart")
    counts = Counter(sample.label for sample in data.train)
    empty = [index for index in range(len(data.classes)) if not counts[index]]
    if may_be_empty or not empty:
        return
    more = f" and {len(empty) - _NAMED} more" if len(empty) > _NAMED else ""
    named = ", ".join(f"{data.classes[index]} (label {index})" for index in empty[:_NAMED]) + more
    hint = "the labels seem to be counted from 1: count them from 0; or else " if empty[0] == 0 else ""
    raise UserError(
        f"{find_lists(data.folder, 'finetune', data.fold)['train']} has no clip of {named}; {hint}"
        "take the class out of classes.txt, or train without clips of it: --allow-empty-classes"
    )


def _check_sample(
    name: str, samples: Sequence[Sample], config: TrainConfig, face_box: tuple[int, ...] | None = None
) -> str:
    """Looks for some of the clips to train on, and into a few of them: a million on a network would take hours."""
    looked = samples[:: max(len(samples) // _LOOKED_AT, 1)]
    there = [sample for sample in looked if os.path.exists(sample.path)]
    present = {sample.path for sample in there}
    missing = [sample.path for sample in looked if sample.path not in present]
    if len(missing) > config.max_bad_files or len(missing) == len(looked):
        raise _missing(name, len(missing), len(looked), missing[0])
    opened = there[:: max(len(there) // _OPENED, 1)]
    failures = check_containers(opened)
    if len(failures) > config.max_bad_files or len(failures) == len(opened):
        raise UserError(
            f"{len(failures)} of {len(opened)} {name} videos that were looked into cannot be read, the first "
            f"{failures[0].path}: {failures[0].reason} (python -m mae_dfer.data.check LIST names all)"
        )
    broken = {failure.path for failure in failures}
    if len(looked) == len(samples) and not config.allow_empty_classes:
        left = {sample.label for sample in there if sample.path not in broken}
        lost = min({sample.label for sample in looked} - left, default=None)
        if lost is not None:
            raise UserError(
                f"no {name} video of the class with label {lost} can be read, the first "
                f"{next(sample.path for sample in looked if sample.label == lost)}; "
                "check the list, or train without them: --allow-empty-classes"
            )
    if face_box is not None:
        _check_face_box(face_box, next(sample.path for sample in opened if sample.path not in broken), config)
    return ""


def _check_face_box(box: tuple[int, ...], path: str, config: TrainConfig) -> None:
    with open_video(path, square_pixels=config.protocol == "published") as video:
        height, width = video.get([0]).shape[1:3]
    top, left, rows, columns = box
    if top + rows > height or left + columns > width:
        raise UserError(
            f"--pretrain-face-box {','.join(map(str, box))} (top, left, height, width) reaches beyond the "
            f"{width} × {height} pixels of {path}"
        )


def _missing(name: str, count: int, of: int, first: str) -> UserError:
    return UserError(
        f"{count} of {of} {name} videos that were looked for do not exist, "
        f"the first {first}; check the list, or give the folder that its paths start from as --data-root"
    )


def _tell_overlap(data: DatasetFolder) -> None:
    """Says what makes a score mean less than it seems to."""
    labels: dict[str, int] = {}
    differing = [sample.path for sample in data.train if labels.setdefault(sample.path, sample.label) != sample.label]
    if differing:
        print_note(f"{len(differing)} training clips are listed with two labels, the first {differing[0]}")
    shared = [sample.path for sample in data.test if sample.path in labels]
    if shared:
        print_note(f"{len(shared)} of {len(data.test)} test clips are among the training clips, the first {shared[0]}")


def _check_readable(samples: Sequence[Sample]) -> str:
    """Opens the test videos, or as many of a long list as take no longer than a minute or so."""
    probed = samples[:: -(-len(samples) // _PROBED)]
    if len(probed) < len(samples):
        print_note(f"looked into {len(probed):,} of {len(samples):,} test videos: the rest is read when it is scored")
    failures = check_containers(probed)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(probed)} test videos cannot be read, the first {failures[0].path}: "
            f"{failures[0].reason}; every test clip must be readable "
            "(python -m mae_dfer.data.check LIST names all that are not)"
        )
    return ""
