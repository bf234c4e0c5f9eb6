"""The training loop, the same for pre-training and fine-tuning.

Each step seeds torch and NumPy from (seed, stage, epoch, step) and each clip's draws come from (seed, epoch, clip),
so a run repeats, and one resumed in the middle of an epoch goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from ..checkpoint import load_into
from ..checkpoint.report import first_few
from ..cli import flag, spell
from ..config import StageConfig, TrainConfig
from ..errors import UserError
from ..models import VideoModel
from .graphs import GraphedModel
from .hardware import Hardware, has_fast_bf16
from .optim import Optimizers, schedule
from .progress import console, stage_bar
from .run import RunFolder

# Settings of a model that may change while it is trained: how it is computed, and how much it drops.
FREE = ("fused_attn", "residual_dtype", "drop_path_rate")
_LARGEST = 1e8  # of a weight; beyond it, an update went astray
SYNC_EVERY = 10  # steps between two reads of the loss from the device


class Task(Protocol):
    """What the loop trains: see `pretrain.py` and `finetune.py`."""

    name: str

    @property
    def settings(self) -> StageConfig: ...

    model: VideoModel
    metadata: dict[str, Any]

    def steps_per_epoch(self) -> int: ...

    def loader(self, epoch: int, start_step: int) -> Iterable[dict[str, Any]]:
        """Batches of one epoch from ``start_step`` on, each with ``failures`` (unreadable clips)."""

    def fingerprint(self) -> str:
        """A text that changes where the clips, their order, or the labels to learn do."""

    def blank_batch(self) -> tuple[torch.Tensor, ...]:
        """What the model is called with, of the shape of a whole batch, on the CPU."""

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Scalars to log; ``loss`` is the one that is minimised."""


@dataclass
class Position:
    """Where a stage stands, and what the running epoch has summed up so far."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    steps_summed: int = 0
    seconds: float = 0.0
    clips: int = 0
    bad_files: dict[str, str] = field(default_factory=dict)
    last_record: dict[str, float] = field(default_factory=dict)


def fit(task: Task, config: TrainConfig, run: RunFolder, hardware: Hardware) -> Position:
    """Trains ``task`` to its last epoch, resuming from the run folder where it holds a checkpoint."""
    settings, steps_per_epoch = task.settings, task.steps_per_epoch()
    total = settings.epochs * steps_per_epoch
    model = hardware.wrap(_graphed(task, hardware) if config.cuda_graph else task.model)
    muon_dtype = torch.bfloat16 if has_fast_bf16(hardware.device) else torch.float32
    optimizers = Optimizers(
        task.model,
        settings,
        muon_dtype,
        decay_representatives=config.protocol == "published" and task.name == "pretrain",
    )
    scaler = torch.amp.GradScaler(hardware.device.type, enabled=hardware.amp_dtype == torch.float16)
    made_with = {
        "batch_size": settings.batch_size,
        "world_size": hardware.world_size,
        "fingerprint": task.fingerprint(),
    }
    position = _resume(task, run, hardware, optimizers, scaler, made_with)

    last_save = time.monotonic()
    with stage_bar(task.name, total, enabled=hardware.is_main) as bar:
        while position.epoch < settings.epochs:
            meter, rate = _Meter(position, hardware), 0.0
            model.train()
            for batch in task.loader(position.epoch, position.step):
                due = hardware.is_main and time.monotonic() - last_save > config.save_every * 60
                alive, failed, due_to_save = hardware.total(
                    int(batch["size"] > 0), len(batch["failures"]), int(due)
                )
                if failed:
                    everywhere = itertools.chain.from_iterable(hardware.gather(batch["failures"]))
                    _note_failures(position, everywhere, config, run)
                done = position.epoch * steps_per_epoch + position.step
                rate, weight_decay = schedule(settings, done, steps_per_epoch)
                optimizers.set_rates(rate, weight_decay)
                _seed_step(config.seed, task.name, position)
                # All processes take a step or none: the gradients of one are awaited by the others.
                if alive == hardware.world_size:
                    meter.add(
                        _step(task, model, optimizers, scaler, batch, settings.clip_grad, hardware),
                        batch["size"],
                    )
                position.step += 1
                if position.step % SYNC_EVERY == 0 or position.step == steps_per_epoch:
                    record = meter.read()
                    loss = record.get("loss", math.nan)  # there is none where no clip could be read
                    bar.update(done + 1, f"loss {loss:.3f} · {record['clips_per_second']:.0f} clips/s")
                if due_to_save and position.step < steps_per_epoch:
                    meter.read()
                    _save(task, config, run, position, optimizers, scaler, made_with)
                    last_save = time.monotonic()
            _end_epoch(task, run, position, meter, rate, steps_per_epoch)
            _save(task, config, run, position, optimizers, scaler, made_with)
            last_save = time.monotonic()
    return position


def _graphed(task: Task, hardware: Hardware) -> GraphedModel:
    """Before there are threads that load data: they call CUDA, and so would spoil a capture."""
    model = task.model.to(hardware.device)
    clip, *mask = task.blank_batch()
    return GraphedModel(model, (clip.to(hardware.device), *mask), hardware.autocast(cache=False))


def _step(
    task: Task,
    model: torch.nn.Module,
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    batch: dict[str, Any],
    clip_grad: float,
    hardware: Hardware,
) -> dict[str, torch.Tensor]:
    # The indices of a mask are computed on the CPU: on a GPU, everything would wait for their number.
    batch = {
        key: value.to(hardware.device, non_blocking=True)
        if isinstance(value, torch.Tensor) and key != "mask"
        else value
        for key, value in batch.items()
    }
    with hardware.autocast():
        losses = task.loss(model, batch)
    scaler.scale(losses["loss"]).backward()
    optimizers.step(scaler, model.parameters(), clip_grad)
    return {name: value.detach() for name, value in losses.items()}


class _Meter:
    """Sums losses on the device; reads them back only now and then, since each read waits for the device."""

    def __init__(self, position: Position, hardware: Hardware) -> None:
        self._position, self._hardware = position, hardware
        self._pending: list[dict[str, torch.Tensor]] = []
        self._sizes: list[int] = []
        self._started = time.monotonic()

    def add(self, losses: dict[str, torch.Tensor], clips: int) -> None:
        """Notes means over ``clips`` clips, this process's share of a batch."""
        self._pending.append(losses)
        self._sizes.append(clips)

    def read(self) -> dict[str, float]:
        """Means over all processes since the epoch began; every process must call it.

        Raises:
            UserError: the loss is no longer finite.
        """
        position, pending, sizes = self._position, self._pending, torch.tensor(self._sizes)
        for name in pending[0] if pending else ():
            values = torch.stack([losses[name].float() for losses in pending])
            total = float(self._hardware.weighted_mean(values, sizes).sum())
            position.sums[name] = position.sums.get(name, 0.0) + total
        position.steps_summed += len(pending)
        position.clips += self._hardware.total(int(sizes.sum()))[0]
        self._pending, self._sizes = [], []
        now = time.monotonic()
        position.seconds += now - self._started
        self._started = now
        means = {name: value / max(position.steps_summed, 1) for name, value in position.sums.items()}
        if not math.isfinite(means.get("loss", 0.0)):
            raise UserError(
                f"the loss is {means['loss']} in epoch {position.epoch + 1}, step {position.step}; "
                "try a lower --lr, --amp bf16 or off, or --resume from the last checkpoint"
            )
        return means | {"clips_per_second": position.clips / max(position.seconds, 1e-9)}


def _end_epoch(
    task: Task,
    run: RunFolder,
    position: Position,
    meter: _Meter,
    rate: float,
    steps_per_epoch: int,
) -> None:
    record = meter.read()
    if "loss" not in record:
        raise UserError("no clip of this epoch could be read; see bad_files.txt in the run folder")
    position.epoch, position.step = position.epoch + 1, 0
    record["lr"] = rate
    run.log(task.name, epoch=position.epoch, step=position.epoch * steps_per_epoch, **record)
    text = " · ".join(f"{name} {value:.4g}" for name, value in record.items() if name != "clips_per_second")
    if run.write:
        console.print(
            f"{task.name} epoch {position.epoch}/{task.settings.epochs} · {text} "
            f"· {record['clips_per_second']:.0f} clips/s"
        )
    position.last_record = record
    position.sums, position.steps_summed, position.seconds, position.clips = {}, 0, 0.0, 0


def _seed_step(seed: int, stage: str, position: Position) -> None:
    sequence = np.random.SeedSequence([seed, *stage.encode(), position.epoch, position.step])
    first, second = sequence.generate_state(2)
    torch.manual_seed(int(first))
    np.random.seed(int(second))


def _note_failures(position: Position, failures: Iterable[Any], config: TrainConfig, run: RunFolder) -> None:
    """Names unreadable videos in bad_files.txt, and stops when there are too many to ignore."""
    fresh = {failure.path: failure.reason for failure in failures if failure.path not in position.bad_files}
    if not fresh:
        return
    position.bad_files.update(fresh)
    for path, reason in fresh.items():
        run.log("bad_file", path=path, reason=reason)
        if run.write:
            console.print(f"skipped {path}: {reason}", style="yellow")
    run.note_bad_files(fresh)
    if len(position.bad_files) > config.max_bad_files:
        raise UserError(
            f"{len(position.bad_files)} videos could not be read (named in {run.path / 'bad_files.txt'}); "
            "mend or unlist them, or raise --max-bad-files"
        )


def _save(
    task: Task,
    config: TrainConfig,
    run: RunFolder,
    position: Position,
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    made_with: dict[str, Any],
) -> None:
    """Raises UserError, and saves nothing, where a weight is not finite or huge, as after steps at too high a rate."""
    values = task.model.state_dict().items()
    broken = [name for name, value in values if not (value.abs() < _LARGEST).all()]
    if broken:
        raise UserError(
            f"after {position.epoch} epochs and {position.step} steps of {task.name}, weights are not finite or above "
            f"{_LARGEST:g} ({first_few(broken)}), and are not saved; try a lower --lr, or --amp bf16 or off"
        )
    state = made_with | {
        "position": vars(position).copy(),
        "optimizers": optimizers.state_dict(),
        "scaler": scaler.state_dict(),
    }
    run.save(
        task.name, position.epoch, position.step, task.model, state, task.metadata, config.keep_checkpoints
    )


def _resume(
    task: Task,
    run: RunFolder,
    hardware: Hardware,
    optimizers: Optimizers,
    scaler: torch.amp.GradScaler,
    made_with: dict[str, Any],
) -> Position:
    """Where the run's newest whole checkpoint of the stage stands, with everything loaded from it."""
    found = _load(task, run, hardware)
    if found is None:
        return Position()
    weights, state, metadata = found
    try:
        position = Position(**state["position"])
    except TypeError as error:
        raise UserError(f"{run.path}: its checkpoint is of another version of this package ({error})") from None
    _compare(task, run, position, state, metadata, made_with)
    load_into(task.model, weights, f"{run.path}: its checkpoint")
    try:
        optimizers.load_state_dict(state["optimizers"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{run.path}: the state of its optimiser does not fit ({' '.join(str(error).split())[:100]}); leave "
            f"--{task.name}-optimizer and what else groups the parameters as they were, or start a new run"
        ) from None
    if state["scaler"]:  # else it was trained without --amp fp16, and a scale is searched from here on
        scaler.load_state_dict(state["scaler"])
    if "init" in metadata:
        task.metadata["init"] = metadata["init"]
    if run.write:
        console.print(f"{task.name}: going on after {position.epoch} epochs and {position.step} steps")
    if position.epoch > task.settings.epochs:
        run.say(f"{task.name} has more epochs than the {task.settings.epochs} asked for, and stays as it is")
    return position


def _load(
    task: Task, run: RunFolder, hardware: Hardware
) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]] | None:
    """What the main process finds to be the newest whole checkpoint, on every process."""
    found = None

    def choose() -> str:
        nonlocal found
        found = run.load_latest(task.name, hardware.device)
        return "" if found is None else "found"

    if hardware.decide(choose) and not hardware.is_main:  # what is damaged has been set aside
        found = run.load_latest(task.name, hardware.device)
    return found


def _compare_models(run: RunFolder, trained: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError for a model that computes something else, even where its tensors have the same shapes."""
    changed = [name for name, value in wanted.items() if trained.get(name, value) != value and name not in FREE]
    if changed:
        options = " ".join(f"{flag(name)} {spell(trained[name])}" for name in changed)
        raise UserError(f"{run.path} was trained with {options}; leave that as it was, or start a new run")


def _compare(
    task: Task,
    run: RunFolder,
    position: Position,
    state: dict[str, Any],
    metadata: dict[str, Any],
    made_with: dict[str, Any],
) -> None:
    """Refuses to go on with what would not fit, and says what makes the end differ from that of a run in one go."""
    if metadata.get("classes", task.metadata.get("classes")) != task.metadata.get("classes"):
        raise UserError(
            f"{run.path} was trained on other classes ({', '.join(metadata['classes'])}) than --data has; "
            "--init-from starts a new run from it"
        )
    _compare_models(run, metadata["model"], task.model.config.to_dict())
    # Checkpoints of earlier versions do not say all of this.
    before = {name: state.get(name, value) for name, value in made_with.items()}
    if before["batch_size"] != made_with["batch_size"]:
        raise UserError(
            f"{run.path} was trained with --{task.name}-batch-size {before['batch_size']}: "
            "its position counts steps of that size"
        )
    changed = before["fingerprint"] != made_with["fingerprint"]
    if changed and position.step:
        raise UserError(
            f"{run.path}: the list of {task.name} clips changed since its last checkpoint, which is from the middle of "
            f"an epoch; restore the list, or start a new run with --init-from {run.path}"
        )
    if changed:
        run.say(f"the list of {task.name} clips changed since the last checkpoint")
    if before["world_size"] != made_with["world_size"]:
        run.say(
            f"trained by {before['world_size']} processes so far, by {made_with['world_size']} from here on: "
            "the result is not bit for bit that of either"
        )
    run.log(
        "resume",
        stage=task.name,
        epochs_done=position.epoch,
        steps_done=position.step,
        clips_changed=changed,
        processes=made_with["world_size"],
    )
