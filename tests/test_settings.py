"""Settings that cannot be: from the command line, and from a config.json that was edited by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mae_dfer.cli import Parser
from mae_dfer.config import TrainConfig, preset
from mae_dfer.data.check import main as check
from mae_dfer.errors import UserError
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train
from mae_dfer.train import parse_config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"amp": "fp8"}, "amp is 'fp8'; it must be one of auto, off, bf16, fp16"),
        ({"pool": "mean"}, "pool is 'mean'; it must be one of"),
        ({"embed_dim": "wide"}, "embed_dim is 'wide', where a whole number or null belongs"),
        ({"depth": 2.0}, "depth is 2.0, where a whole number or null belongs"),
        ({"workers": True}, "workers is True, where"),
        ({"data_root": 5}, "data_root is 5, where text or null belongs"),
        ({"seed": None}, "seed is None, where a whole number belongs"),
        ({"img_size": 64}, "img_size is 64, where 2 whole numbers or null belongs"),
        ({"img_size": [64, "64"]}, "where 2 whole numbers"),
        ({"region_size": [1, 2]}, "where 3 whole numbers"),
        ({"pretrain": {"crop_scales": []}}, "pretrain.crop_scales is [], where a list of numbers belongs"),
        ({"pretrain": {"crop_scales": {"a": 1}}}, "where a list of numbers belongs"),
        ({"pretrain": {"face_box": [0, 0, 8]}}, "where 4 whole numbers"),
        ({"finetune": {"crop_area": [0.1, float("nan")]}}, "finetune.crop_area must lie in (0, 1], got nan"),
        ({"finetune": {"lr": float("inf")}}, "finetune.lr must be at most 1e+30, got inf"),
        ({"pretrain": {"weight_decay_end": "0.1"}}, "pretrain.weight_decay_end is '0.1', where a number or null"),
        ({"finetune": []}, "finetune: settings are names and values, not []"),
        ({"finetune": {"lrr": 1}}, "did you mean 'finetune.lr'"),
        ({"save_every": 10**400}, "save_every must be at most"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"data": "a\0b"}, "holds a zero byte"),
        ({"data": "\ud800"}, "not valid UTF-8"),
        ({"pretrain": {"epochs": 0}}, "pretrain.epochs must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_config_edited_by_hand_is_refused_by_name(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        TrainConfig.load(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n\xff\xfe", b"", b"{", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}", b'{"a": ' * 2000],
    ids=["binary", "empty", "cut", "deep list", "long number", "deep object"],
)
def test_a_config_that_is_no_json_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert train(["--resume", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'config.json'}: not valid JSON") and error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_config_is_read_in_the_encodings_of_editors(encoding: str, tmp_path: Path) -> None:
    config = preset("small")
    config.data = "Gesichter/größer"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), ensure_ascii=False), encoding=encoding)
    assert TrainConfig.load(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "1e300"], "--lr (--pretrain-lr) must be at most 1e+30, got 1e+300"),
        (["--cache-gb", "1e300"], "--cache-gb must be at most"),
        (["--cache-gb", "nan"], "--cache-gb"),
        (["--stride", "9" * 30], "--stride must be at most"),
        (["--epochs", "9" * 30], "--epochs (--pretrain-epochs) must be at most"),
        (["--workers", "1000000"], "--workers must be at most 1024"),
        (["--finetune-layer-decay", "1e300"], "--finetune-layer-decay must lie in [0, 1]"),
        (["--finetune-drop-path", "1"], "--finetune-drop-path must lie in [0, 1), got 1.0"),
        (["--pretrain-crop-scales", "1,0"], "--pretrain-crop-scales must lie in (0, 1]"),
        (["--finetune-crop-aspect", "1,inf"], "--finetune-crop-aspect must be at most"),
        (["--output-dir", ""], "--output-dir is empty"),
        (["--data", ""], "--data is empty"),
        (["--init-from", ""], "--init-from is empty"),
        (["--data-root", ""], "--data-root is empty"),
        (["--resume", ""], "the name is empty"),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_opened(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(arguments)
    assert words in str(caught.value)


def test_an_empty_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path("") is the current folder, which nobody meant."""
    monkeypatch.chdir(tmp_path)
    assert train(["--output-dir", ""]) == 2
    assert predict(["", "--checkpoint", "x"]) == predict(["x", "--checkpoint", ""]) == 2
    assert predict(["x", "--checkpoint", "x", "--output", ""]) == check([""]) == check(["x", "--root", ""]) == 2
    assert not list(tmp_path.iterdir())
    parser = Parser()
    parser.add_argument_group("group").add_argument("--path", type=Path)
    with pytest.raises(UserError, match="--path: the name is empty"):
        parser.parse_args(["--path="])


def test_what_may_be_empty_is(tmp_path: Path) -> None:
    assert parse_config(["--finetune-rand-augment", ""])[0].finetune.rand_augment == ""


@pytest.mark.parametrize("policy", ["rand-m7-p1..2", "rand-n99999999999999999999", "rand-mstd."])
def test_an_impossible_augmentation_is_refused_when_it_is_made(policy: str) -> None:
    from mae_dfer.data import ClipConfig

    with pytest.raises(UserError, match="is not understood"):
        ClipConfig(rand_augment=policy).transform("finetune")


def test_a_face_box_without_pixels_is_refused_when_it_is_made() -> None:
    from mae_dfer.data import ClipConfig

    with pytest.raises(UserError, match="face_box must be"):
        ClipConfig(face_box=(0, 0, 0, 8)).transform("pretrain")
