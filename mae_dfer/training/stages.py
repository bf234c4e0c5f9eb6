"""The stages of a run, each starting from the one before, and what the run folder says of them at the end."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mae_dfer_kernels import backends

from ..checkpoint import check_sizes
from ..cli import flag, spell
from ..config import TrainConfig
from ..data import DatasetFolder
from ..errors import UserError
from ..models import ModelConfig
from ..models.layers import longest_region
from ..models.memory import tell_exhaustion
from ..notes import Say, keep_quiet, print_note
from ..recipes import load_recipe
from . import pictures, provenance
from .checkpoints import find_weights
from .checks import check_description, check_inputs, configure_autoencoder, configure_classifier, stages
from .evaluate import evaluate
from .failures import explained
from .finetune import FinetuneTask
from .hardware import Hardware
from .inputs import clip_config
from .loop import FREE, fit
from .pretrain import PretrainTask
from .progress import console
from .run import RunFolder
from .weights import BEGINNINGS, load_classifier, start_from


def check_lists(
    config: TrainConfig,
    data: DatasetFolder,
    model: ModelConfig,
    hardware: Hardware,
    given: Collection[str],
    resume: Path | None,
    say: Say = print_note,
) -> None:
    """Refuses lists with which a run would fail, or that are not those of its recipe.

    Args:
        given: the options on the command line.
        resume: the run that goes on: it was compared with dataset.json when it began.
    """
    if resume is None:
        check_description(config, data, given, say if hardware.is_main else keep_quiet)
    check_inputs(config, data, model, hardware)


def run_one(
    config: TrainConfig,
    data: DatasetFolder,
    model: ModelConfig,
    hardware: Hardware,
    given: Collection[str] = (),
    resume: Path | None = None,
) -> None:
    """Trains and scores in one run folder: a new one, or that of the run to ``resume``."""
    backend = encoder_backend(model, config.fused_attn, hardware)
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


@tell_exhaustion()
def run_stages(
    config: TrainConfig,
    data: DatasetFolder,
    run: RunFolder,
    hardware: Hardware,
    backend: str,
    given: Collection[str] = (),
) -> None:
    """The stages that ``config.stage`` asks for, each starting from the one before. ``given``: options on the line."""
    started = time.monotonic()
    say = console.print if hardware.is_main else lambda *_, **__: None
    code = provenance.describe_code() if hardware.is_main else {}  # now: the checkout may change before the end
    say(f"run folder {run.path} · device {hardware.describe()} · attention: {backend}")
    hardware.decide(lambda: prepare(config, run, given))
    run.tell_changes()
    tell_short_stages(config, run)
    results: dict[str, Any] = {
        "uar": None,
        "war": None,
        "attention_backend": backend,
        "data": config.data,
        "fold": config.fold,
        "preset": config.preset,
        "recipe": config.recipe,
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
        results["views"] = provenance.describe_views(clip_config(config, model.config))
        results |= evaluate(model, data.test, data.classes, config, run, hardware, results["checkpoint"])
        uar = "undefined" if results["uar"] is None else f"{results['uar']:.4f}"
        say(f"test UAR {uar} · WAR {results['war']:.4f} on {results['clips']} clips", style="bold")
    results["protocol"] = config.protocol  # an evaluated classifier's own
    results["seconds"] = round(time.monotonic() - started, 1)
    if hardware.is_main:
        results["provenance"] = trace(config, data, run, hardware, results) | code
        run.write_json("metrics.json", results)
        if config.stage != "pretrain":  # after the results: no picture may cost them
            draw_score(results, run)
        say(f"results in {run.path}")


def trace(
    config: TrainConfig, data: DatasetFolder, run: RunFolder, hardware: Hardware, results: dict[str, Any]
) -> dict[str, Any]:
    """What ``results`` come from, besides the code: data, weights, settings, device."""
    lists = {"pretrain": ("pretrain",), "finetune": ("train", "test"), "evaluate": ("test",)}
    scored = results.get("checkpoint") or find_weights(run.path, ("pretrain",))
    found = {
        "data": provenance.describe_data(data, lists.get(config.stage, ("pretrain", "train", "test"))),
        "checkpoint": provenance.describe_file(scored),
        "init": results.get("finetune_init", results.get("pretrain_init")),
        "decoder": provenance.describe_decoder(config.video_decoder),
        "seed": config.seed,
        "protocol": config.protocol,
        "attention_backend": results["attention_backend"],
        "settings_sha256": provenance.hash_settings(config),
    }
    for name in ("views", "trained_on"):
        if name in results:
            found[name] = results.pop(name)
    return found | provenance.describe_hardware(hardware)


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
    redo = "redo" in given or (run.redo_pending and config.stage != "evaluate")
    whole = {name: [one for one in run.list_checkpoints(name) if one.is_whole] for name in ("pretrain", "finetune")}
    if redo:
        whole["finetune"] = []
    first = stages(config)[0] if stages(config) else "finetune"
    if "init_from" in given and whole[first]:
        raise UserError(
            f"{run.path} has {first} checkpoints to go on from, so --init-from would have no effect; "
            "leave it out, or start a new run with it"
        )
    done = whole["pretrain"][-1].epoch if whole["pretrain"] else None
    if "pretrain" in stages(config) and whole["finetune"] and (done or 0) < config.pretrain.epochs:
        raise UserError(
            f"{run.path}: {done or 0} of now {config.pretrain.epochs} epochs of pre-training are done, and its "
            "classifier began without the rest; --redo finetune pre-trains on and fine-tunes from the start, "
            "--stage finetune goes on with the classifier as it is"
        )
    if redo:
        anew = "init_from" in given if "redo" in given else run.redo_starts_anew("init_from" in given)
        check_redo(config, run, done, anew)
        run.begin_redo(anew)  # a kill that comes before its end leaves it to the next call
        run.save_settings()
        run.set_aside(run.list_checkpoints("finetune"), "to be fine-tuned again", results=True)
    for name in stages(config):
        unfinished = [one for one in run.list_checkpoints(name) if not one.is_whole]
        run.set_aside(unfinished, f"weights of {name} without a trainer state, so never finished")
        if unfinished and not whole[name]:
            run.say(f"{name} starts at its beginning")
    return ""


def check_redo(config: TrainConfig, run: RunFolder, done: int | None, starts_anew: bool) -> None:
    """Raises UserError where fine-tuning could not begin again: before what there is of it is set aside.

    Args:
        done: epochs of pre-training in the run; None where it has none of its own.
        starts_anew: whether fine-tuning begins from --init-from although the run has pre-training of its own.
    """
    if done is not None:
        changed = [one.split()[0] for one in run.changed]
        kept = [name for name in changed if name.startswith("pretrain.") and name != "pretrain.epochs"]
        if done < config.pretrain.epochs and "seed" in changed and "pretrain" in stages(config):
            kept.append("seed")
        if kept:
            raise UserError(
                f"{run.path} has {done} epochs of pre-training with other settings than {', '.join(map(flag, kept))} "
                "now; leave those as they were (--finetune-… are of fine-tuning alone), or start a new run"
            )
    own = done is not None and not starts_anew
    if config.stage == "finetune" and (own or config.init_from is not None):
        source = find_weights(run.path, ("pretrain",)) if own else find_weights(str(config.init_from), BEGINNINGS)
        check_sizes(configure_classifier(config), source, config.weights)
    elif config.stage == "all" and done is None and config.init_from is not None:
        check_sizes(configure_autoencoder(config), find_weights(config.init_from, ("pretrain",)), config.weights)


# The two stages are functions of their own so that the decoding processes of one, and the videos they keep in
# memory, are gone before the other starts its own.
def pretrain(config: TrainConfig, data: DatasetFolder, run: RunFolder, hardware: Hardware) -> dict[str, Any]:
    """Pre-trains, draws a reconstruction, and returns the figures of the last epoch."""
    task = PretrainTask(config, data, hardware)
    if not run.list_checkpoints("pretrain"):
        source = config.init_from
        task.metadata["init"] = None if source is None else start_from(task.model, source, run, config.weights)
        if source is None and config.stage == "all" and config.recipe:
            tell_scratch(config, run, f"pre-training starts from scratch, on {config.data} alone")
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
    config: TrainConfig, data: DatasetFolder, run: RunFolder, hardware: Hardware, given: Collection[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """Fine-tunes, and returns the classifier and the figures of the last epoch."""
    task = FinetuneTask(config, data, hardware)
    hardware.barrier()  # the main process has written the checkpoint that the others read
    if not run.list_checkpoints("finetune"):
        source, weights = config.init_from, config.weights
        # The run's own pre-training, unless other weights are asked for.
        asked = run.redo_starts_anew("init_from" in given)
        if config.stage == "all" or (run.list_checkpoints("pretrain") and not asked):
            source, weights = str(run.path), "auto"
        if source is None:
            tell_scratch(config, run, "the classifier is trained from scratch")
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
    config: TrainConfig, data: DatasetFolder, run: RunFolder, given: Collection[str], say: Any
) -> tuple[Any, dict[str, Any]]:
    """The classifier to evaluate, and where it is from. Sets what it was trained with and ``given`` does not name."""
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
    if "model" in metadata:  # a published file does not say it: there, the options do
        refuse_other_sizes(config, metadata["model"], source, given)
    tell_other_fold(metadata.get("trained_on"), data, source, run)
    for name in ("stride", "num_segments", "protocol"):  # as it was trained, unless someone says otherwise
        if name in metadata and name not in given:
            setattr(config, name, metadata[name])
    record = {"checkpoint": str(source), "trained_on": metadata.get("trained_on")}
    return model, record | ({"finetune_init": metadata["init"]} if "init" in metadata else {})


def refuse_other_sizes(
    config: TrainConfig, trained: dict[str, Any], source: Path, given: Collection[str]
) -> None:
    """Refuses options that would have no effect: a classifier is what it was trained as."""
    asked = {name: value for name, value in config.model_overrides(pretraining=False).items() if name in given}
    if {"model", "preset"} & set(given):
        asked["name"] = config.model
    for name, value in asked.items():
        own = trained.get(name, value)
        if name not in FREE and value != (tuple(own) if isinstance(own, list) else own):
            option = "--preset or --model" if name == "name" else flag(name)
            raise UserError(f"{source} was trained with {flag('model' if name == 'name' else name)} {spell(own)}, "
                            f"and is scored as it is; leave out {option}")  # fmt: skip


def tell_scratch(config: TrainConfig, run: RunFolder, what: str) -> None:
    """Says what starts from nothing, and where the published run of the recipe starts from."""
    origin = load_recipe(config.recipe).starts_from if config.recipe else None
    published = f"; the published run starts from the weights of --recipe {origin}" if origin else ""
    run.say(f"no --init-from: {what}{published}")


def tell_other_fold(trained_on: Any, data: DatasetFolder, source: Path, run: RunFolder) -> None:
    """Says where a classifier is scored on another fold than it was trained on: it has seen clips of that one."""
    if not isinstance(trained_on, dict) or trained_on.get("set") != data.description.set:
        return
    fold = trained_on.get("fold")
    if fold is not None and data.fold is not None and fold != data.fold:
        run.say(f"{source} was trained on fold {fold}, so it has seen clips that fold {data.fold} tests on")


def draw_score(results: dict[str, Any], run: RunFolder) -> None:
    confusion, path = np.array(results["confusion_matrix"]), run.path / "confusion_matrix.png"
    pictures.draw_confusion_matrix(confusion, results["classes"], results["uar"], results["war"], path)


def encoder_backend(model: Any, fused_attn: bool, hardware: Hardware) -> str:
    """The backend that attention runs on in an encoder of configuration ``model``."""
    if not fused_attn:
        return "eager"
    tokens = model.num_tokens if model.is_vit else model.num_tokens // model.num_regions + 1
    if tokens > longest_region(hardware.device):
        return "sdpa"
    dtype = hardware.amp_dtype or torch.float32
    probe = torch.empty(1, tokens, 3 * model.embed_dim, device=hardware.device, dtype=dtype)
    return backends.choose("region_attention", "auto", probe, model.num_heads)
