"""Every setting of a training run: dataclasses, the three presets, and the way to and from JSON.

The defaults are the paper's (arXiv 2307.02227, section 4.1 and its published code); ``preset("tiny")`` and
``preset("small")`` say what they change and why. Learning rates are per 256 clips: a run uses ``lr × batch / 256``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cli import Bounds, option
from .errors import UserError
from .files import write_atomically
from .settings_check import read_settings

STAGES = ("pretrain", "finetune", "evaluate", "all")
PRESETS = ("tiny", "small", "base")
PROTOCOLS = ("corrected", "published")
RECIPES = ("voxceleb2", "dfew", "ferv39k", "mafw", "ravdess", "crema-d", "enterface05")

# Beyond these, numbers overflow somewhere, or a run would never end.
_POSITIVE, _NOT_NEGATIVE = Bounds(1, 10**9), Bounds(0, 10**9)
_RATE, _LEARNING_RATE = Bounds(0, 1e30), Bounds(0, 1e30, low_open=True)
_FACTOR = Bounds(0, 100)
_SHARE, _BELOW_ONE = Bounds(0, 1), Bounds(0, 1, high_open=True)
_PART = Bounds(0, 1, low_open=True)

# What makes weights those of one network and not of another.
ENCODER_OPTIONS = (
    "img_size", "num_frames", "patch_size", "region_size", "embed_dim", "depth", "num_heads", "local_attention",
    "global_attention", "exchange", "share_attention",
)  # fmt: skip
DECODER_OPTIONS = ("decoder_depth", "decoder_embed_dim", "decoder_num_heads")


@dataclass
class StageConfig:
    """What both training stages have; the numbers are those of pre-training."""

    epochs: int = option(100, "passes over the training clips", bounds=_POSITIVE)
    batch_size: int = option(160, "clips per step, over all devices", bounds=_POSITIVE)
    lr: float = option(3e-4, "learning rate per 256 clips", bounds=_LEARNING_RATE)
    min_lr: float = option(1e-5, "learning rate at the end of the cosine, per 256 clips", bounds=_RATE)
    warmup_epochs: float = option(5.0, "epochs of linear warm-up from 0", bounds=_NOT_NEGATIVE)
    optimizer: str = option(
        "adamw", "adamw is the paper's; muon adds Muon for the matrices of the blocks", choices=("adamw", "muon")
    )
    patch_embed_lr_scale: float = option(1.0, "factor on the patch embedding's learning rate", bounds=_FACTOR)
    weight_decay: float = option(0.05, "weight decay (never on biases, norms and tokens)", bounds=_FACTOR)
    weight_decay_end: float | None = option(
        None,
        "weight decay at the last step, reached along a cosine (default: it does not change)",
        metavar="X",
        bounds=_FACTOR,
    )
    beta2: float = option(0.95, "AdamW's second beta", bounds=_BELOW_ONE)
    clip_grad: float = option(0.0, "clip the gradient norm to this (0: do not)", bounds=_RATE)
    layer_decay: float = 1.0  # an option of fine-tuning alone


@dataclass
class PretrainConfig(StageConfig):
    """Masked auto-encoding of unlabelled clips (paper, section 3.1 and 4.1)."""

    mask: str = option(
        "region_window_tube",
        "which tokens are hidden; all but the first need a ViT",
        choices=("region_window_tube", "tube", "random"),
    )
    mask_symmetry: str = option(
        "none",
        "hide one half of the face: drawn once a clip, or once a window",
        choices=("none", "global", "local"),
    )
    mask_ratio: float = option(0.9, "share of the tokens that is hidden", bounds=Bounds(0, 1, True, True))
    crop_scales: tuple[float, ...] = option(
        (1.0, 0.875, 0.75, 0.66), "multi-scale crop: shares of the frame's side", bounds=_PART
    )
    face_box: tuple[int, int, int, int] | None = option(
        None,
        "cut this out of every frame first; the 224-pixel frames of VoxCeleb2 want 0,32,160,160",
        metavar="TOP,LEFT,HEIGHT,WIDTH",
        bounds=_NOT_NEGATIVE,
    )
    appearance_weight: float = option(0.5, "weight of appearance in the loss; the rest is for motion", bounds=_SHARE)


@dataclass
class FinetuneConfig(StageConfig):
    """Supervised training of the classifier (paper, section 4.1)."""

    batch_size: int = option(96, "clips per step, over all devices", bounds=_POSITIVE)
    lr: float = option(1e-3, "learning rate per 256 clips", bounds=_LEARNING_RATE)
    min_lr: float = option(1e-6, "learning rate at the end of the cosine, per 256 clips", bounds=_RATE)
    beta2: float = option(0.999, "AdamW's second beta", bounds=_BELOW_ONE)
    layer_decay: float = option(0.75, "learning rate factor from one layer to the one below", bounds=_SHARE)
    drop_path: float = option(0.1, "stochastic depth rate of the last block (rises linearly)", bounds=_BELOW_ONE)
    mixup: float = option(0.8, "mixup alpha (0: off)", bounds=_RATE)
    cutmix: float = option(1.0, "cutmix alpha (0: off)", bounds=_RATE)
    still_mix: float = option(
        0.0, "blend each clip with one frame of another, at a share drawn from 0 to this (0: off)", bounds=_BELOW_ONE
    )
    label_smoothing: float = option(0.1, "label smoothing", bounds=_BELOW_ONE)
    rand_augment: str = option(
        "rand-m7-n4-mstd0.5-inc1", "timm RandAugment policy, one draw a clip ('': none)", may_be_empty=True
    )
    crop_area: tuple[float, float] = option(
        (0.08, 1.0), "smallest and largest share of the frame a crop keeps", bounds=_PART
    )
    crop_aspect: tuple[float, float] = option(
        (3 / 4, 4 / 3), "smallest and largest width/height of a crop", bounds=Bounds(1e-3, 1e3)
    )
    flip_prob: float = option(0.5, "probability of a horizontal flip")
    erase_prob: float = option(0.25, "probability of erasing one box of the clip")


@dataclass
class TrainConfig:
    """One run of ``python -m mae_dfer.train``."""

    stage: str = option("all", "what to run: pre-train, fine-tune, evaluate, or all three", choices=STAGES)
    preset: str = option(
        "tiny",
        "sizes and settings: tiny (2 CPU cores), small (one GPU-hour), base (the paper's)",
        choices=PRESETS,
    )
    recipe: str | None = option(
        None,
        f"the published settings for a data set: {', '.join(RECIPES)}; other options change single ones of them",
        metavar="NAME",
    )
    data: str = option(
        "demo",
        "folder with classes.txt, train.txt, test.txt; of videos for --stage pretrain; 'demo' draws faces, once",
        metavar="FOLDER",
    )
    data_root: str | None = option(
        None,
        "folder that relative paths in the lists start from (default: what dataset.json in --data says, or --data)",
        metavar="FOLDER",
    )
    fold: int | None = option(
        None,
        "which fold to train and test on, where --data has folders fold-1, fold-2 … with train.txt and test.txt",
        metavar="K",
        bounds=_NOT_NEGATIVE,
    )
    folds: str | None = option(
        None,
        "train folds one after the other, each in fold-K of --output-dir, and sum up their scores there; "
        "the same command again skips those that are finished, and goes on with the others",
        metavar="all|K,K…",
    )
    output_dir: str | None = option(
        None, "run folder (default: runs/<preset or recipe>-<date>-<time>)", metavar="FOLDER"
    )
    init_from: str | None = option(
        None,
        "weights to start from: a .safetensors of a run, a published .pth, or a run folder "
        "(its newest pre-training checkpoint, else its newest classifier; for --stage evaluate its newest classifier)",
        metavar="PATH",
    )
    weights: str = option(
        "auto",
        "which weights of a published .pth: the model's, or ema, their moving average (auto: the first it has)",
        choices=("auto", "model", "ema"),
    )
    fused_attn: bool = option(True, "fused attention kernels, the best backend of the device (--no-: plain PyTorch)")
    device: str = option("auto", "cpu, cuda, cuda:1 … (auto: a GPU where there is one)", metavar="NAME")
    amp: str = option(
        "auto",
        "mixed precision (auto: bf16 where the device multiplies it natively, else off)",
        choices=("auto", "off", "bf16", "fp16"),
    )
    cuda_graph: bool = option(
        False, "training steps as CUDA graphs, for a GPU that waits for Python (their memory stays taken)"
    )
    protocol: str = option(
        "corrected",
        "published: what the authors' code does, to the last number; corrected: without its defects (docs/protocol.md)",
        choices=PROTOCOLS,
    )
    seed: int = option(
        0, "all randomness is a function of (seed, epoch, clip)", bounds=Bounds(0, 2**63, high_open=True)
    )
    workers: int | None = option(
        None,
        "processes that decode video (default: one a core, at most 8; none where a CPU trains with --cache-gb)",
        bounds=Bounds(0, 1024),
    )
    video_decoder: str = option(
        "pyav", "what reads video files (decord: plain H.264 in mp4, and pyav the rest)", choices=("pyav", "decord")
    )
    cache_gb: float = option(
        0.0, "memory for decoded videos in each decoding process; for small sets", metavar="GB", bounds=_NOT_NEGATIVE
    )
    save_every: float = option(
        5.0,
        "also save when this many minutes have passed since the last checkpoint (the end of an epoch always saves)",
        metavar="MINUTES",
        bounds=_NOT_NEGATIVE,
    )
    keep_checkpoints: int = option(2, "how many checkpoints of a stage to keep", bounds=_POSITIVE)
    max_bad_files: int = option(
        20, "stop training when more unreadable videos than this were met", bounds=_NOT_NEGATIVE
    )
    allow_empty_classes: bool = option(False, "train although a class of classes.txt has no training clip")
    shuffle_labels: bool = option(False, "control: permute the training labels; the score must fall to chance")

    model: str = option("lgi_former_base_patch16_160", "model name (mae_dfer.list_models())")
    img_size: tuple[int, int] | None = option(None, "frame size in pixels: side, or height,width", bounds=_POSITIVE)
    num_frames: int | None = option(None, "frames per clip", bounds=_POSITIVE)
    stride: int = option(4, "every how many frames of the video one is taken", bounds=_POSITIVE)
    patch_size: int | None = option(None, "side of a patch in pixels", bounds=_POSITIVE)
    region_size: tuple[int, int, int] | None = option(
        None, "local region in tokens: time,height,width", bounds=_POSITIVE
    )
    embed_dim: int | None = option(None, "width of the encoder", bounds=_POSITIVE)
    depth: int | None = option(None, "encoder blocks", bounds=_POSITIVE)
    num_heads: int | None = option(None, "attention heads of the encoder", bounds=_POSITIVE)
    local_attention: str | None = option(None, "step 1 of the block", choices=("self", "representative"))
    global_attention: bool | None = option(None, "step 2 of the block: attention among representative tokens")
    exchange: str | None = option(None, "step 3 of the block", choices=("cross", "self", "none"))
    share_attention: str | None = option(
        None, "which attentions of a block share weights", choices=("none", "local_exchange", "all")
    )
    pool: str | None = option(None, "tokens that the classifier averages", choices=("representative", "local", "all"))
    residual_dtype: str | None = option(
        None,
        "of the residual stream (default: parameters', float32; autocast: that of --amp, less memory, coarser sums)",
        choices=("parameters", "autocast"),
    )
    decoder_depth: int | None = option(None, "decoder blocks (pre-training)", bounds=_POSITIVE)
    decoder_embed_dim: int | None = option(None, "width of the decoder (pre-training)", bounds=_POSITIVE)
    decoder_num_heads: int | None = option(None, "attention heads of the decoder (pre-training)", bounds=_POSITIVE)
    num_segments: int = option(
        2, "windows per test video whose probabilities are averaged", bounds=Bounds(1, 10_000)
    )

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def model_overrides(self, *, pretraining: bool) -> dict[str, Any]:
        """What to hand ``create_model`` besides the name: only what was set."""
        names = [*ENCODER_OPTIONS, "residual_dtype", *(DECODER_OPTIONS if pretraining else ["pool"])]
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if pretraining and self.protocol == "published":
            chosen["decoder_positions"] = "published"
        return chosen | {"fused_attn": self.fused_attn}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`. Raises :class:`UserError` on a name or a value that does not belong."""
        return read_settings(TrainConfig, values)

    def save(self, path: Path) -> None:
        write_atomically(path, lambda temporary: temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n"))

    @staticmethod
    def load(path: Path) -> TrainConfig:
        try:
            return TrainConfig.from_dict(json.loads(path.read_bytes()))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except (FileNotFoundError, NotADirectoryError):
            if path.parent.is_file():
                raise UserError(f"{path.parent} is a file; it is not the folder of an earlier run") from None
            raise UserError(f"{path.parent} is not the folder of an earlier run: it has no {path.name}") from None
        except (ValueError, RecursionError) as error:  # of what is no text, too, and of too long numbers
            raise UserError(f"{path}: not valid JSON ({error})") from None


def preset(name: str) -> TrainConfig:
    """``base`` is the paper's recipe; ``small`` and ``tiny`` keep its method at sizes for less hardware."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
    return {"tiny": _tiny, "small": _small, "base": _base}[name]()


def _base() -> TrainConfig:
    return TrainConfig(preset="base")


def _small() -> TrainConfig:
    """About an hour on one GPU for a data set of ten thousand clips: half the width, fewer epochs."""
    return TrainConfig(
        preset="small",
        model="lgi_former_small_patch16_160",
        pretrain=PretrainConfig(epochs=30, batch_size=128, lr=6e-4, warmup_epochs=3),
        finetune=FinetuneConfig(epochs=30, batch_size=64, warmup_epochs=3),
    )


def _tiny() -> TrainConfig:
    """Minutes on two CPU cores, for the demo set: 64-pixel frames, a narrow and shallow model, Muon.

    Regions span the whole clip in time and a quarter of the frame's height: with so few steps to learn in, a
    token should see its own place at all other times directly. Half of the tokens are hidden rather than nine
    tenths, since 64-pixel frames have only sixteen patches. Two cores cannot repeat the published augmentation.

    The patch embedding learns slowly (``patch_embed_lr_scale``): at the rate of the rest its outputs grow to ten times
    the fixed positions that are added to them, and then no block can tell when something happens. Stills of other
    clips are blended in (``still_mix``) against learning training clips by their looks. Videos are decoded once and
    kept.
    """
    return TrainConfig(
        preset="tiny",
        model="lgi_former_tiny_patch16_160",
        img_size=(64, 64),
        region_size=(8, 2, 4),
        num_heads=4,
        decoder_num_heads=4,
        pool="local",
        stride=2,
        num_segments=1,
        cache_gb=2.0,
        pretrain=PretrainConfig(
            epochs=10,
            batch_size=16,
            lr=3.2e-2,
            min_lr=3e-4,
            warmup_epochs=1,
            optimizer="muon",
            patch_embed_lr_scale=0.05,
            clip_grad=1.0,
            mask_ratio=0.5,
            crop_scales=(1.0, 0.875),
        ),
        finetune=FinetuneConfig(
            epochs=56,
            batch_size=32,
            lr=8e-3,
            min_lr=8e-5,
            warmup_epochs=1,
            optimizer="muon",
            patch_embed_lr_scale=0.05,
            clip_grad=1.0,
            layer_decay=1.0,
            drop_path=0.0,
            mixup=0.0,
            still_mix=0.3,
            cutmix=0.0,
            rand_augment="",
            crop_area=(0.85, 1.0),
            crop_aspect=(0.95, 1.05),
            erase_prob=0.0,
        ),
    )
