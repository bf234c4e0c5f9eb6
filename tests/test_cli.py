"""Options are derived from the dataclasses; mistakes end in one line and exit code 2."""

import json

import pytest

from mae_dfer.config import PRESETS, TrainConfig, preset
from mae_dfer.errors import UserError
from mae_dfer.train import main, parse_config


def test_settings_survive_json():
    config = preset("tiny")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_their_own_check(name):
    assert parse_config(["--preset", name])[0] == preset(name)


def test_an_option_for_both_stages_gives_way_to_one_for_a_single_stage():
    config, _, _ = parse_config(["--epochs", "3", "--finetune-epochs", "5", "--img-size", "96,64"])
    assert (config.pretrain.epochs, config.finetune.epochs, config.img_size) == (3, 5, (96, 64))


def test_flags_have_a_negative_form():
    assert parse_config(["--fused-attn"])[0].fused_attn
    assert not parse_config(["--no-fused-attn"])[0].fused_attn


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fused-atn"], "did you mean --fused-attn"),
        (["--pretrain-lrr", "1"], "did you mean --pretrain-lr"),
        (["--stage", "train"], "invalid choice"),
        (["--epochs", "0"], "--epochs (--pretrain-epochs) must be at least 1"),
        (["--img-size", "96,96,3"], "2 numbers"),
        (["--stage", "evaluate"], "--init-from"),
        (["--resume", "nowhere"], "not the folder of an earlier run"),
        (["--stage", "pretrain", "--shuffle-labels"], "no meaning"),
        (["--data", "nowhere", "--output-dir", "unused"], "nowhere"),
        (["--device", "tpu"], "--device"),
        (["--device", "cpu", "--cuda-graph"], "--cuda-graph needs an NVIDIA GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_line(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert expected in error
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_unknown_setting_in_a_file_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'stride'"):
        TrainConfig.from_dict({"strde": 2})
