"""``python -m mae_dfer.train``: pre-train, fine-tune and score MAE-DFER on video files."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .cli import Parser, RawHelp, add_options, command
from .config import FinetuneConfig, PretrainConfig, TrainConfig, preset
from .errors import UserError
from .models.memory import tell_exhaustion
from .settings_check import check_settings
from .training.failures import ended_by_signals, explained

if TYPE_CHECKING:
    from .training.run import RunFolder

DESCRIPTION = """\
Trains MAE-DFER: masked pre-training on unlabelled clips, fine-tuning on labelled ones, a score on test clips.

With no options it draws a demo set of faces, pre-trains and fine-tunes the tiny preset on it, and scores it:
some twelve minutes on two CPU cores. For your own videos: a folder with classes.txt (one class name per line),
train.txt and test.txt (`path label` on each line; labels are class names, or count from 0), given as --data.
Pre-training alone (--stage pretrain) needs no labels: a folder with pretrain.txt (one path per line), or any folder of
videos."""

EXAMPLES = """\
examples:
  python -m mae_dfer.train --fused-attn
  python -m mae_dfer.train --data my_clips --preset base --output-dir runs/base
  python -m mae_dfer.train --data my_clips --preset base --stage finetune --init-from runs/base
  python -m mae_dfer.train --resume runs/base
  torchrun --nproc-per-node 8 -m mae_dfer.train --data my_clips --preset base
"""

RUN_OPTIONS = (
    "stage",
    "preset",
    "data",
    "data_root",
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
    run.add_argument("--epochs", type=int, metavar="N", help="epochs of both training stages")
    run.add_argument("--batch-size", type=int, metavar="N", help="batch size of both training stages")
    run.add_argument(
        "--lr", type=float, metavar="X", help="learning rate per 256 clips of both training stages"
    )
    add_options(
        parser.add_argument_group("clips and model (default: what the preset says)"),
        TrainConfig,
        skip=RUN_OPTIONS,
    )
    add_options(parser.add_argument_group("pre-training"), PretrainConfig, prefix="pretrain-")
    add_options(parser.add_argument_group("fine-tuning"), FinetuneConfig, prefix="finetune-")
    return parser


def parse_config(argv: Sequence[str] | None) -> tuple[TrainConfig, Path | None, set[str]]:
    """Settings from preset (or the resumed run's config.json) and the options given; the run to resume; and the
    names of the options given."""
    given = vars(build_parser().parse_args(argv))
    resume = given.pop("resume")
    names = {name for name, value in given.items() if value is not None}
    if resume is not None:
        for name in ("output_dir", "preset"):
            if name in given:
                raise UserError(
                    f"--{name.replace('_', '-')} contradicts --resume, which goes on in its own folder"
                )
        config = TrainConfig.load(resume / "config.json")
        if given.get("protocol", config.protocol) != config.protocol and given.get("stage", config.stage) != "evaluate":
            raise UserError(
                f"{resume} is trained with --protocol {config.protocol}, which its checkpoints fit; "
                f"start a new run with another, from --init-from {resume} if you like"
            )
    else:
        config = preset(given.get("preset", "tiny"))
    redo = given.pop("redo", None)
    for name in BOTH_STAGES:
        value = given.pop(name)
        if value is not None:
            for stage in ("pretrain", "finetune"):
                given.setdefault(f"{stage}_{name}", value)
    for name, value in given.items():
        stage, _, setting = name.partition("_")
        if stage in ("pretrain", "finetune"):
            setattr(getattr(config, stage), setting, value)
        else:
            setattr(config, name, value)
    if redo is not None and (resume is None or config.stage == "evaluate"):
        raise UserError("--redo takes the run to fine-tune again as --resume RUN, and a --stage that trains")
    check(config, resuming=resume is not None)
    return config, resume, names


def check(config: TrainConfig, *, resuming: bool = False) -> None:
    """Refuses settings that cannot work, or contradict each other, before anything is read or written."""
    check_settings(config, _option)
    if (config.finetune.mixup or config.finetune.cutmix) and config.finetune.batch_size % 2:
        raise UserError("mixup and cutmix work on pairs of clips: give an even --finetune-batch-size, or both as 0")
    if config.stage == "evaluate" and config.init_from is None and not resuming:
        raise UserError("--stage evaluate needs --init-from RUN (or --resume RUN): the classifier to score")
    if config.weights != "auto" and config.init_from is None:
        raise UserError("--weights chooses among those of --init-from; give that too")
    if config.shuffle_labels and config.stage in ("pretrain", "evaluate"):
        raise UserError(f"--shuffle-labels has no meaning with --stage {config.stage}")


def _option(group: str, name: str) -> str:
    """How a setting is spelled on the command line."""
    option = f"--{group}-{name}" if group else f"--{name}"
    if group and name in BOTH_STAGES:
        option = f"--{name} ({option})"
    return option.replace("_", "-")


@command
@ended_by_signals()
def main(argv: Sequence[str] | None = None) -> int:
    config, resume, given = parse_config(argv)
    # Heavy imports wait until the options are known to be good, so that --help and mistakes answer at once.
    from .training.checks import check_inputs, check_models
    from .training.hardware import close_hardware, open_hardware
    from .training.inputs import open_data
    from .training.run import RunFolder

    hardware = open_hardware(config)
    try:
        model = check_models(config, hardware)
        backend = encoder_backend(model, config.fused_attn, hardware)
        data = open_data(config, hardware)
        check_inputs(config, data, model, hardware)
        run = RunFolder.open(config, resume, hardware)
        try:
            with explained(run.path):
                run_stages(config, data, run, hardware, backend, given)
        except UserError:
            if resume is None:
                run.remove_if_unused()
            raise
        finally:
            run.close()
    finally:
        close_hardware()
    return 0


@tell_exhaustion()
def run_stages(
    config: TrainConfig, data: Any, run: RunFolder, hardware: Any, backend: str, given: Collection[str] = ()
) -> None:
    """The stages that ``config.stage`` asks for, each starting from the one before. ``given``: options on the line."""
    from .training.evaluate import evaluate
    from .training.progress import console

    started = time.monotonic()
    say = console.print if hardware.is_main else lambda *_, **__: None
    say(f"run folder {run.path} · device {hardware.describe()} · attention: {backend}")
    hardware.decide(lambda: prepare(config, run, given))
    tell_short_stages(config, run)
    results: dict[str, Any] = {
        "uar": None,
        "war": None,
        "attention_backend": backend,
        "data": config.data,
        "preset": config.preset,
        "seed": config.seed,
        "shuffle_labels": config.shuffle_labels,
    }
    if config.stage in ("pretrain", "all"):
        results |= pretrain(config, data, run, hardware)
        ratio = results["pretrain_loss_ratio"]
        share = "all targets are zero" if ratio is None else f"{ratio:.2f} of predicting zero"
        say(f"pre-training loss {results['pretrain_loss']:.3f}: {share}")
    if config.stage in ("finetune", "all"):
        model, record = finetune(config, data, run, hardware, given)
        results |= record
    elif config.stage == "evaluate":
        model, record = load_trained(config, data, run, given, say)
        run.save_settings()
        results = run.read_json("metrics.json") | results | record
        results["attention_backend"] = encoder_backend(model.config, config.fused_attn, hardware)
    if config.stage != "pretrain":
        results |= evaluate(model, data.test, data.classes, config, run, hardware, results["checkpoint"])
        uar = "undefined" if results["uar"] is None else f"{results['uar']:.4f}"
        say(f"test UAR {uar} · WAR {results['war']:.4f} on {results['clips']} clips", style="bold")
    results["protocol"] = config.protocol  # an evaluated classifier's own
    results["seconds"] = round(time.monotonic() - started, 1)
    if hardware.is_main:
        run.write_json("metrics.json", results)
        if config.stage != "pretrain":  # after the results: no picture may cost them
            draw_score(results, run)
        say(f"results in {run.path}")


def tell_short_stages(config: TrainConfig, run: RunFolder) -> None:
    """Says where a learning rate does not come to its peak."""
    for name, settings in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if config.stage in (name, "all") and settings.epochs < settings.warmup_epochs:
            run.say(
                f"{name} ends after {settings.epochs} of {settings.warmup_epochs:g} epochs of warm-up, before its "
                f"learning rate reaches --{name}-lr; --{name}-warmup-epochs makes the warm-up shorter"
            )


def prepare(config: TrainConfig, run: RunFolder, given: Collection[str] = ()) -> str:
    """Sets aside what is to be done again and what was never finished; for the main process, before it trains.

    Raises:
        UserError: an option that would have no effect; a stage that would be trained on although another began from it.
    """
    stages = {"evaluate": (), "all": ("pretrain", "finetune")}.get(config.stage, (config.stage,))
    redo = "redo" in given
    whole = {name: [one for one in run.list_checkpoints(name) if one.is_whole] for name in ("pretrain", "finetune")}
    if redo:
        whole["finetune"] = []
    first = stages[0] if stages else "finetune"
    if "init_from" in given and whole[first]:
        raise UserError(
            f"{run.path} has {first} checkpoints to go on from, so --init-from would have no effect; "
            "leave it out, or start a new run with it"
        )
    done = whole["pretrain"][-1].epoch if whole["pretrain"] else 0
    if "pretrain" in stages and whole["finetune"] and done < config.pretrain.epochs:
        raise UserError(
            f"{run.path}: {done} of now {config.pretrain.epochs} epochs of pre-training are done, and its "
            "classifier began without the rest; --redo finetune pre-trains on and fine-tunes from the start, "
            "--stage finetune goes on with the classifier as it is"
        )
    if redo:
        run.set_aside(run.list_checkpoints("finetune"), "to be fine-tuned again", results=True)
    for name in stages:
        unfinished = [one for one in run.list_checkpoints(name) if not one.is_whole]
        run.set_aside(unfinished, f"weights of {name} without a trainer state, so never finished")
        if unfinished and not whole[name]:
            run.say(f"{name} starts at its beginning")
    return ""


# The two stages are functions of their own so that the decoding processes of one, and the videos they keep in
# memory, are gone before the other starts its own.
def pretrain(config: TrainConfig, data: Any, run: RunFolder, hardware: Any) -> dict[str, Any]:
    """Pre-trains, draws a reconstruction, and returns the figures of the last epoch."""
    from .training.loop import fit
    from .training.pretrain import PretrainTask
    from .training.weights import start_from

    task = PretrainTask(config, data, hardware)
    if not run.list_checkpoints("pretrain"):
        source = config.init_from
        task.metadata["init"] = None if source is None else start_from(task.model, source, run, config.weights)
    last = fit(task, config, run, hardware).last_record
    if hardware.is_main:
        task.draw(data.test or data.pretrain, run)
    return {
        "pretrain_init": task.metadata.get("init"),
        "pretrain_loss": last["loss"],
        "pretrain_loss_predicting_zero": last["zero"],
        "pretrain_loss_ratio": last["loss"] / last["zero"] if last["zero"] else None,
        "pretrain_clips_per_second": last["clips_per_second"],
    }


def finetune(
    config: TrainConfig, data: Any, run: RunFolder, hardware: Any, given: Collection[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Fine-tunes, and returns the classifier and the figures of the last epoch."""
    from .training.finetune import FinetuneTask
    from .training.loop import fit
    from .training.run import find_weights
    from .training.weights import start_from

    task = FinetuneTask(config, data, hardware)
    hardware.barrier()  # the main process has written the checkpoint that the others read
    if not run.list_checkpoints("finetune"):
        source, weights = config.init_from, config.weights
        # The run's own pre-training, unless other weights are asked for.
        if config.stage == "all" or (run.list_checkpoints("pretrain") and "init_from" not in given):
            source, weights = str(run.path), "auto"
        if source is None:
            run.say("no --init-from: the classifier is trained from scratch")
            task.metadata["init"] = None
        else:
            task.metadata["init"] = start_from(task.model, source, run, weights, data.classes)
    last = fit(task, config, run, hardware).last_record
    return task.model, {
        "checkpoint": hardware.decide(lambda: str(find_weights(run.path, ("finetune",)))),
        "finetune_init": task.metadata.get("init"),
        "finetune_loss": last["loss"],
        "finetune_clips_per_second": last["clips_per_second"],
    }


def load_trained(
    config: TrainConfig, data: Any, run: RunFolder, given: Collection[str], say: Any
) -> tuple[Any, dict[str, Any]]:
    """The classifier to evaluate, and where it is from. Sets what it was trained with and ``given`` does not name."""
    from .training.run import find_weights
    from .training.weights import load_classifier

    own = run.list_checkpoints("finetune")  # of a resumed run: those are to be scored, not what it began from
    source = find_weights(run.path if own else config.init_from or run.path, ("finetune",))
    model, metadata = load_classifier(
        source,
        fused_attn=config.fused_attn,
        config=config,
        classes=data.classes,
        classes_from=config.data,
        weights="auto" if own else config.weights,
        say=say,
    )
    for name in ("stride", "num_segments", "protocol"):  # as it was trained, unless someone says otherwise
        if name in metadata and name not in given:
            setattr(config, name, metadata[name])
    return model, {"checkpoint": str(source)} | ({"finetune_init": metadata["init"]} if "init" in metadata else {})


def draw_score(results: dict[str, Any], run: Any) -> None:
    from .training.pictures import draw_confusion_matrix

    confusion, path = np.array(results["confusion_matrix"]), run.path / "confusion_matrix.png"
    draw_confusion_matrix(confusion, results["classes"], results["uar"], results["war"], path)


def encoder_backend(model: Any, fused_attn: bool, hardware: Any) -> str:
    """The backend that attention runs on in an encoder of configuration ``model``."""
    from mae_dfer_kernels import backends

    from .models.layers import longest_region

    if not fused_attn:
        return "eager"
    tokens = model.num_tokens if model.is_vit else model.num_tokens // model.num_regions + 1
    if tokens > longest_region(hardware.device):
        return "sdpa"
    dtype = hardware.amp_dtype or torch.float32
    probe = torch.empty(1, tokens, 3 * model.embed_dim, device=hardware.device, dtype=dtype)
    return backends.choose("region_attention", "auto", probe, model.num_heads)


if __name__ == "__main__":
    sys.exit(main())
