"""The commands with checkpoints of the published code: what they take from them, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_dfer import create_model
from mae_dfer.checkpoint import save_official, save_weights, to_official
from mae_dfer.data.sets import CLASSES, find_classes
from mae_dfer.errors import UserError
from mae_dfer.models import VideoModel
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train
from mae_dfer.training.run import RunFolder
from mae_dfer.training.weights import start_from

LGI, VIT = "lgi_former_base_patch16_160", "vit_base_patch16_160"
CLIP = {"img_size": (32, 32), "num_frames": 4}
REGIONS = {"region_size": (1, 2, 1)}
UNTOLD = ["--img-size=32", "--num-frames=4", "--region-size=1,2,1"]


def make(name: str = LGI, seed: int = 0, **options: object) -> VideoModel:
    """A small model whose logits differ."""
    torch.manual_seed(seed)
    regions = {} if "vit" in name else REGIONS
    sizes = {"embed_dim": 64, "depth": 2, "num_heads": 1, **CLIP, **regions}
    if name.startswith("mae_"):
        sizes |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1}
    model = create_model(name, **sizes | options)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def rows(path: str = "predictions.csv") -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], command: object = predict) -> str:
    assert command(arguments) == 2  # type: ignore[operator]
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (LGI, {}),
        (LGI, {"local_attention": "representative", "exchange": "self", "mlp_ratio": 2.0}),
        (LGI, {"global_attention": False, "exchange": "none", "depth": 3}),
        (VIT, {"embed_dim": 128, "num_heads": 2}),
    ],
)
def test_a_published_classifier_predicts_as_our_own_file_of_it(
    name: str, options: dict[str, object], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(name, **options)
    save_weights(model, "own.safetensors", {"classes": list(CLASSES["dfew"]), "stride": 1})
    save_official(model, "published.pth")
    common = [str(clip), "--device=cpu", "--window-step=1", "--force"]
    assert predict([*common, "--checkpoint=own.safetensors"]) == 0
    ours = rows()
    capsys.readouterr()
    assert predict([*common, "--checkpoint=published.pth", "--classes=DFEW", "--stride=1", *UNTOLD]) == 0
    assert rows() == ours and len({row["happy"] for row in ours}) > 1
    shown = capsys.readouterr().out
    assert "assumed: 4 frames of 32 × 32 pixels at stride 1" in shown and f"{model.config.num_heads} heads" in shown


def test_classes_may_come_from_a_file_and_the_average_by_name(clip: Path) -> None:
    (clip.parent / "names.txt").write_text("".join(f"class {index}\n" for index in range(7)))
    average = make(seed=1)
    torch.save({"model": to_official(make()), "model_ema": to_official(average)}, "published.pth")
    save_official(average, "average.pth")
    common = [str(clip), "--device=cpu", "--classes=names.txt", "--force", *UNTOLD]
    assert predict([*common, "--checkpoint=published.pth", "--weights=ema"]) == 0
    chosen = rows()
    assert predict([*common, "--checkpoint=average.pth"]) == 0
    assert rows() == chosen and list(chosen[0])[-7:] == [f"class {index}" for index in range(7)]


def test_the_stride_is_that_of_the_set(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_official(make(), "published.pth")
    common = [str(clip), "--device=cpu", "--force", "--checkpoint=published.pth", *UNTOLD]
    for options, stride in ("--classes=ferv39k", 1), ("--classes=dfew", 4), ("--classes=ferv39k --stride=3", 3):
        assert predict([*common, *options.split()]) == 0
        assert f"at stride {stride}," in capsys.readouterr().out


REFUSALS = [
    (["published.pth"], "published.pth does not say its classes; give --classes"),
    (["published.pth", "--classes=mafw", *UNTOLD], "published.pth has 7 outputs; mafw has 11 classes"),
    (["published.pth", "--classes=ferv"], "did you mean ferv39k?"),
    (["published.pth", "--classes=dfew"], "published.pth has 4 regions"),
    (["published.pth", "--classes=dfew", "--preset=tiny"], "published.pth has 4 regions"),
    (["published.pth", "--classes=dfew", *UNTOLD, "--num-heads=3"], "not a multiple of num_heads"),
    (["published.pth", "--classes=dfew", *UNTOLD, "--model=" + VIT], "does not fit the model"),
    (["published.pth", "--classes=dfew", *UNTOLD, "--weights=ema"], "holds no moving average"),
    (["published.pth", "--classes=dfew", *UNTOLD, "--stride=0"], "--stride must be at least 1"),
    (["pretraining.pth"], "pretraining.pth is a pre-training checkpoint, not a classifier"),
    (["pretraining.pth", "--classes=dfew", *UNTOLD], "--stage finetune --init-from it"),
    (["pretraining.safetensors"], "--stage finetune --init-from it"),
    (["run"], "run holds pre-training checkpoints alone"),
    (["own.state.pt"], "the weights are in own.safetensors"),
    (["own.safetensors", "--img-size=32"], "says its own sizes; leave out --img-size"),
    (["own.safetensors", "--classes=mafw"], "was trained on other classes"),
    (["own.safetensors", "--weights=ema"], "holds no moving average"),
    (["headless.pth", "--classes=dfew"], "head.weight is not a tensor of 2 dimensions (missing)"),
    (["clip/0.png", "--classes=dfew"], "clip/0.png is not a checkpoint"),
    (["page.safetensors", "--classes=dfew"], "page.safetensors is an HTML page"),
    (["half.safetensors", "--classes=dfew"], "half.safetensors is damaged or cut short"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSALS)
def test_what_predict_refuses(
    arguments: list[str], words: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_official(make(), "published.pth")
    save_official(make("mae_" + LGI), "pretraining.pth")
    save_weights(make("mae_" + LGI), "pretraining.safetensors")
    save_weights(make("mae_" + LGI), "run/checkpoints/pretrain-epoch-0001.safetensors")
    save_weights(make(), "own.safetensors", {"classes": list(CLASSES["dfew"]), "stride": 1})
    Path("own.state.pt").write_bytes(b"state")
    torch.save({name: value for name, value in to_official(make()).items() if "head" not in name}, "headless.pth")
    Path("page.safetensors").write_text("<!doctype html><html></html>")
    Path("half.safetensors").write_bytes(Path("own.safetensors").read_bytes()[:-100])
    assert words in error_of([str(clip), "--device=cpu", "--checkpoint", *arguments], capsys)
    assert not Path("predictions.csv").exists()


def make_set(classes: int = 7) -> list[str]:
    folder = Path("set")
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"class {index}\n" for index in range(classes)))
    for name in ("train.txt", "test.txt"):
        (folder / name).write_text("../clip 1\n")
    return ["--data=set", "--stage=evaluate", "--device=cpu", "--workers=0", "--output-dir=out"]


def test_a_published_classifier_is_evaluated(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = make_set()
    model = make()
    save_official(model, "published.pth")
    names = [f"class {index}" for index in range(7)]
    save_weights(model, "own.safetensors", {"classes": names, "stride": 4, "num_segments": 2})
    assert train([*common, "--init-from=published.pth", "--preset=base", *UNTOLD]) == 0
    assert "assumed" in capsys.readouterr().out
    published = rows("out/predictions.csv")
    assert train([*common[:-1], "--output-dir=own", "--init-from=own.safetensors"]) == 0
    assert rows("own/predictions.csv") == published
    assert json.loads(Path("out/metrics.json").read_text())["checkpoint"] == "published.pth"


def test_a_head_that_was_never_trained_is_not_evaluated(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [*make_set(), "--preset=base", *UNTOLD]
    save_official(make("mae_" + LGI), "pretraining.pth")
    save_weights(make("mae_" + LGI), "pretraining.safetensors")
    for name in ("pretraining.pth", "pretraining.safetensors"):
        error = error_of([*common, f"--init-from={name}"], capsys, train)
        assert f"{name} is a pre-training checkpoint, not a classifier" in error and "--stage finetune" in error
    save_official(make(num_classes=11), "published.pth")
    error = error_of([*common, "--init-from=published.pth"], capsys, train)
    assert "published.pth has 11 outputs; set has 7 classes" in error


def test_training_starts_from_the_weights_of_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    average, model = make("mae_" + LGI, seed=1), make("mae_" + LGI, seed=2)
    torch.save({"model": to_official(make("mae_" + LGI)), "ema": to_official(average)}, tmp_path / "file.pth")
    start_from(model, tmp_path / "file.pth", RunFolder(tmp_path / "run"), "ema")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), average.parameters(), strict=True))
    assert "took ema, --weights model takes the other" in capsys.readouterr().out
    save_weights(average, tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="holds no moving average"):
        start_from(model, tmp_path / "own.safetensors", RunFolder(tmp_path / "run"), "ema")
    assert "--init-from" in error_of(["--weights=ema"], capsys, train)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("DFEW", "dfew"), ("FERV39k", "ferv39k"), ("ferv-39k", "ferv39k"), ("Mafw", "mafw"), ("RAVDESS", "ravdess"),
     ("CREMA-D", "crema-d"), ("cremad", "crema-d"), ("Crema_D", "crema-d"), ("eNTERFACE'05", "enterface05")],
)  # fmt: skip
def test_sets_are_known_by_their_common_spellings(spelling: str, name: str) -> None:
    assert find_classes(spelling) == list(CLASSES[name])


def test_class_orders_are_those_of_the_published_labels() -> None:
    assert {name: len(classes) for name, classes in CLASSES.items()} == {
        "dfew": 7, "ferv39k": 7, "mafw": 11, "ravdess": 8, "crema-d": 6, "enterface05": 6,
    }  # fmt: skip
    assert CLASSES["dfew"] == CLASSES["ferv39k"] and CLASSES["dfew"][:4] == ("happy", "sad", "neutral", "angry")
    assert CLASSES["mafw"][4] == "neutral" and CLASSES["mafw"][10] == "disappointment"
    assert CLASSES["ravdess"][7] == "surprised" and CLASSES["crema-d"] == tuple(sorted(CLASSES["crema-d"]))
