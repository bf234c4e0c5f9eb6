"""``python -m mae_dfer.train``: pre-train, fine-tune and score MAE-DFER on video files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli import Parser, RawHelp, add_options, command, flag, spell
from .config import DECODER_OPTIONS, ENCODER_OPTIONS, FinetuneConfig, PretrainConfig, TrainConfig, preset
from .errors import UserError
from .files import encodable
from .recipes import find_recipe, load_recipe
from .settings_check import check_settings
from .signals import ended_by_signals

DESCRIPTION = """\
Trains MAE-DFER: masked pre-training on unlabelled clips, fine-tuning on labelled ones, a score on test clips.

With no options it draws a demo set of faces, pre-trains and fine-tunes the tiny preset on it, and scores it:
some twelve minutes on two CPU cores. For your own videos: a folder with classes.txt (one class name per line),
train.txt and test.txt (`path label` on each line; labels are class names, or count from 0), given as --data.
Pre-training alone (--stage pretrain) needs no labels: a folder with pretrain.txt (one path per line), or any folder of
videos.

A set that is split several times has its lists in folders fold-1, fold-2 … beside classes.txt: --fold K takes one,
--folds all one after the other. For the sets of the paper, python -m mae_dfer.data.prepare writes such a folder, and
--recipe NAME has the published settings; --print shows them, and what a run does otherwise."""

EXAMPLES = """\
examples:
  python -m mae_dfer.train --fused-attn
  python -m mae_dfer.train --data my_clips --preset base --output-dir runs/base
  python -m mae_dfer.train --data my_clips --preset base --stage finetune --init-from runs/base
  python -m mae_dfer.train --recipe dfew --print
  python -m mae_dfer.train --recipe dfew --data dfew --folds all --init-from runs/voxceleb2 --output-dir runs/dfew
  python -m mae_dfer.train --resume runs/base
  torchrun --nproc-per-node 8 -m mae_dfer.train --data my_clips --preset base
"""

RUN_OPTIONS = (
    "stage",
    "preset",
    "recipe",
    "data",
    "data_root",
    "fold",
    "folds",
    "output_dir",
    "init_from",
    "weights",
    "fused_attn",
    "device",
    "amp",
    "cuda_graph",
    "protocol",
    "seed",
    "workers",
    "video_decoder",
    "cache_gb",
    "save_every",
    "keep_checkpoints",
    "max_bad_files",
    "allow_empty_classes",
    "shuffle_labels",
)
BOTH_STAGES = ("epochs", "batch_size", "lr")


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m mae_dfer.train",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=RawHelp,
    )
    model_options = [name for name in TrainConfig.__dataclass_fields__ if name not in RUN_OPTIONS]
    run = parser.add_argument_group("run")
    add_options(run, TrainConfig, skip=model_options)
    run.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with an earlier run folder, from its newest checkpoint"
    )
    run.add_argument(
        "--redo",
        choices=("finetune",),
        default=argparse.SUPPRESS,
        help="with --resume: fine-tune from the start; the checkpoints and scores there are set aside",
    )
    run.add_argument(
        "--print",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show every setting that these options come to, beside the published ones of a --recipe, and stop",
    )
    run.add_argument("--epochs", type=int, metavar="N", help="epochs of both training stages")
    run.add_argument("--batch-size", type=int, metavar="N", help="batch size of both training stages")
    run.add_argument(
        "--lr", type=float, metavar="X", help="learning rate per 256 clips of both training stages"
    )
    add_options(
        parser.add_argument_group("clips and model (default: what the preset or recipe says)"),
        TrainConfig,
        skip=RUN_OPTIONS,
    )
    add_options(parser.add_argument_group("pre-training"), PretrainConfig, prefix="pretrain-")
    add_options(parser.add_argument_group("fine-tuning"), FinetuneConfig, prefix="finetune-")
    return parser


def parse_config(argv: Sequence[str] | None) -> tuple[TrainConfig, Path | None, set[str]]:
    """Settings from preset, recipe or the resumed run's config.json, and the options given; the run to resume; and the
    names of the options given."""
    options = vars(build_parser().parse_args(argv))
    resume = options.pop("resume")
    given = {name: value for name, value in options.items() if value is not None}
    names = set(given)
    for name in BOTH_STAGES:
        if name in given:
            for stage in ("pretrain", "finetune"):
                given.setdefault(f"{stage}_{name}", given[name])
    config = _start(resume, given)
    for name, value in given.items():
        stage, _, setting = name.partition("_")
        if stage in ("pretrain", "finetune"):
            setattr(getattr(config, stage), setting, value)
        elif name in TrainConfig.__dataclass_fields__:
            setattr(config, name, value)
    if "redo" in given and (resume is None or config.stage == "evaluate"):
        raise UserError("--redo needs --resume RUN, the run to fine-tune again, and a --stage that trains")
    if config.recipe is not None:
        config.recipe = find_recipe(config.recipe)
    check(config, resuming=resume is not None)
    if config.folds is not None and "print" not in given:
        _check_folds(config, resume)
    if "recipe" in given and not given.keys() & {"data", "print"}:
        raise UserError(
            f"--recipe {config.recipe} needs --data FOLDER, the folder that python -m mae_dfer.data.prepare "
            f"{config.recipe} writes (--print shows the settings without)"
        )
    return config, resume, names


def _start(resume: Path | None, given: dict[str, Any]) -> TrainConfig:
    """The settings that the options given are laid upon."""
    if resume is None:
        if "recipe" not in given:
            return preset(given.get("preset", "tiny"))
        recipe = load_recipe(find_recipe(given["recipe"]))
        if "preset" in given:
            raise UserError(
                f"--recipe {recipe.name} has all settings of its own, those of the paper's model; leave out "
                "--preset, and give what is to differ by its option (such as --embed-dim)"
            )
        return recipe.config(given.get("model"))
    for name in ("output_dir", "preset", "recipe", "folds"):
        if name in given:
            raise UserError(f"{flag(name)} contradicts --resume, which goes on in its own folder with its own settings")
    if str(resume) != encodable(str(resume)):
        raise UserError(f"the name of {encodable(str(resume))} is not valid UTF-8; rename the folder")
    config = TrainConfig.load(resume / "config.json")
    if given.get("fold", config.fold) != config.fold:
        trained = "without folds" if config.fold is None else f"on fold {config.fold}"
        raise UserError(f"{resume} is trained {trained}; leave out --fold, or start a new run for another fold")
    if given.get("stage", config.stage) == "evaluate":
        if given.get("data", config.data) != config.data:
            raise UserError(
                f"{resume} keeps the scores on its own --data; score it on other clips with "
                f"--stage evaluate --init-from {resume}"
            )
        return config
    for name in ("model", *ENCODER_OPTIONS, *DECODER_OPTIONS):
        value = getattr(config, name)
        if given.get(name, value) != value:
            was = "its preset's" if value is None else spell(value)
            raise UserError(
                f"{resume} was trained with {flag(name)} {was}; leave that as it was, or start a new run"
            )
    # --redo begins fine-tuning again, with what randomness and labels it is told.
    for name in ("protocol",) if "redo" in given else ("protocol", "seed", "shuffle_labels"):
        value = getattr(config, name)
        if given.get(name, value) != value:
            raise UserError(
                f"{resume} is trained with {flag(name)} {value}, which its checkpoints fit; "
                f"start a new run with another, from --init-from {resume} if you like"
            )
    return config


def _check_folds(config: TrainConfig, resume: Path | None) -> None:
    if resume is not None:
        raise UserError(f"{resume / 'config.json'}: folds is {config.folds!r}, but a run is of one fold; make it null")
    if config.fold is not None:
        raise UserError("--fold takes one fold, and --folds several; give one of the two")
    if config.output_dir is None:
        raise UserError("--folds needs --output-dir FOLDER, where the same command will go on if it is interrupted")
    if config.stage not in ("finetune", "all"):
        raise UserError(
            f"--folds sums up the scores of classifiers that it trains, which --stage {config.stage} does not; "
            "give --fold K for one fold"
        )


def check(config: TrainConfig, *, resuming: bool = False) -> None:
    """Refuses settings that cannot work, or contradict each other, before anything is read or written."""
    check_settings(config, _option)
    if (config.finetune.mixup or config.finetune.cutmix) and config.finetune.batch_size % 2:
        raise UserError("mixup and cutmix work on pairs of clips: give an even --finetune-batch-size, or both as 0")
    if config.stage == "evaluate" and config.init_from is None and not resuming:
        raise UserError("--stage evaluate needs --init-from RUN (or --resume RUN): the classifier to score")
    if config.weights != "auto" and config.init_from is None:
        raise UserError("--weights chooses among those of --init-from; give that too")
    if config.shuffle_labels and config.stage in ("pretrain", "evaluate") and not resuming:
        raise UserError(f"--shuffle-labels has no meaning with --stage {config.stage}")


def _option(group: str, name: str) -> str:
    """How a setting is spelled on the command line."""
    option = flag(f"{group}.{name}" if group else name)
    return f"{flag(name)} ({option})" if group and name in BOTH_STAGES else option


@command
@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    config, resume, given = parse_config(argv)
    # Heavy imports wait until the options are known to be good, so that --help and mistakes answer at once.
    if "print" in given:
        from .settings_table import print_settings

        print_settings(config, given)
        return 0
    from .training.checks import check_models
    from .training.folds import run_folds
    from .training.hardware import close_hardware, open_hardware
    from .training.inputs import open_data
    from .training.stages import check_lists, run_one

    hardware = open_hardware(config)
    try:
        model = check_models(config, hardware)
        if config.folds is not None:
            run_folds(config, model, hardware, given)
        else:
            data = open_data(config, hardware)
            check_lists(config, data, model, hardware, given, resume)
            run_one(config, data, model, hardware, given, resume)
    finally:
        close_hardware()
    return 0


if __name__ == "__main__":
    sys.exit(main())
