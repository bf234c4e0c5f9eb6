"""Recipes: the published numbers through each one's own settings, what is shown of them, and how they are changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from test_protocol import Drawn, read
from test_train_refusals import SMALL, make_set

from mae_dfer import create_model
from mae_dfer.checkpoint import to_official
from mae_dfer.config import RECIPES, FinetuneConfig, PretrainConfig, TrainConfig, preset
from mae_dfer.data import ClipConfig, sampling
from mae_dfer.data.sets import CLASSES, STRIDES
from mae_dfer.errors import UserError
from mae_dfer.models import configure_model
from mae_dfer.recipes import flatten, load_recipe
from mae_dfer.train import main as train
from mae_dfer.train import parse_config
from mae_dfer.training.inputs import clip_config
from mae_dfer.training.optim import Optimizers, schedule

LABELLED = [name for name in RECIPES if name != "voxceleb2"]
# Of this package's own making: at their defaults, they are off.
OURS = {"patch_embed_lr_scale", "weight_decay_end", "still_mix", "layer_decay"}


def settings(name: str, *options: str) -> TrainConfig:
    return parse_config(["--recipe", name, "--data", "x", *options])[0]


def clips_of(name: str) -> ClipConfig:
    config = settings(name)
    return clip_config(config, configure_model(config.model, config.model_overrides(pretraining=False)))


def test_there_is_a_file_for_each_recipe_and_a_recipe_for_each_set() -> None:
    files = {path.stem for path in (Path(__file__).parents[1] / "mae_dfer" / "recipes").glob("*.toml")}
    assert files == {*RECIPES, "differences"} and set(LABELLED) == set(CLASSES)
    for name in RECIPES:
        assert load_recipe(name).set == name


@pytest.mark.parametrize("name", RECIPES)
def test_a_file_spells_out_every_setting_of_its_stage(name: str) -> None:
    recipe = load_recipe(name)
    stage, kind = ("pretrain", PretrainConfig) if name == "voxceleb2" else ("finetune", FinetuneConfig)
    fields = {field.name for field in dataclasses.fields(kind)}
    spelled = {key.removeprefix(f"{stage}.") for key in recipe.published if key.startswith(f"{stage}.")}
    assert fields - OURS <= spelled <= fields and recipe.published["stage"] == stage
    model = configure_model(
        ("mae_" if stage == "pretrain" else "") + recipe.published["model"],
        settings(name).model_overrides(pretraining=stage == "pretrain"),
    ).to_dict()
    sizes = {"img_size", "num_frames", "patch_size", "region_size", "embed_dim", "depth", "num_heads"}
    assert sizes <= recipe.published.keys()
    assert all(tuple_of(model[key]) == value for key, value in recipe.published.items() if key in model)


def tuple_of(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_base_preset_but_for_what_its_set_wants(name: str) -> None:
    ours, base = flatten(settings(name)), flatten(preset("base"))
    differ = {key for key in ours if base[key] not in (None, ours[key])} - {"data", "stage"}
    assert differ == ({"stride", "finetune.batch_size"} if name == "ferv39k" else set())


@pytest.mark.parametrize("name", LABELLED)
def test_layer_groups_of_a_recipe(name: str) -> None:
    config, file = read("layer_groups")
    case, expected = config["cases"]["base_depth16"], json.loads(str(file["groups_base_depth16"]))
    ours = settings(name)
    overrides = ours.model_overrides(pretraining=False) | {"embed_dim": 8, "num_heads": 1}  # as many layers, at no cost
    model = create_model(ours.model, **overrides)
    optimizer = Optimizers(model, ours.finetune).all[0]
    assert optimizer.defaults["betas"] == tuple(case["betas"]) and optimizer.defaults["eps"] == case["made"]["eps"]
    rate, weight_decay = schedule(ours.finetune, 0, 100)
    assert (rate, weight_decay) == (0.0, case["wd"])
    numbers = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = []
    for number, (key, parameter) in enumerate(model.named_parameters()):
        found.append([model.layer_index(key), *numbers[id(parameter)]])
        parameter.data.fill_(number)
    assert {key: found[int(value.flatten()[0])] for key, value in to_official(model).items()} == expected


@pytest.mark.parametrize("name", RECIPES)
def test_the_schedule_of_a_recipe(name: str) -> None:
    cases = {"voxceleb2": "lr_pretrain_paper", "ferv39k": "lr_finetune_ferv39k"}
    case = cases.get(name, "lr_finetune_paper")
    config, file = read("schedule")
    steps = config["cases"][case]["steps_per_epoch"]
    stage = settings(name).pretrain if name == "voxceleb2" else settings(name).finetune
    made = [schedule(stage, step, steps) for step in range(stage.epochs * steps)]
    assert [rate for rate, _ in made] == pytest.approx(file[case].tolist(), abs=1e-15)
    assert {decay for _, decay in made} == {0.05}


@pytest.mark.parametrize("name", LABELLED)
def test_frames_and_views_of_a_recipe(name: str) -> None:
    clips, (_, file) = clips_of(name), read("indices")
    views = [(row, expected) for row, expected in zip(file["test_cases"].tolist(), file["test_indices"], strict=True)
             if row[2] == clips.stride and row[3] == clips.num_segments]  # fmt: skip
    drawn = [(row, expected) for row, expected in
             zip(file["finetune_cases"].tolist(), file["finetune_indices"], strict=True) if row[2] == clips.stride]
    assert clips.stride == STRIDES[name] and len(views) > 20 and len(drawn) > 10
    for (frames, _, _, _, crops, segment, _), expected in views:
        indices = sampling.test_indices(frames, clips.num_frames, clips.stride, clips.num_segments)
        assert indices[segment].tolist() == expected.tolist() and crops == clips.num_crops
    for (frames, _, _, _, low, _, end, _), expected in drawn:
        rng = Drawn(end - low)
        indices = sampling.finetune_indices(frames, clips.num_frames, clips.stride, rng)  # type: ignore[arg-type]
        assert indices.tolist() == expected.tolist()
    config, _ = read("test_transform")
    assert clips.size == (config["input_size"],) * 2


@pytest.mark.parametrize("name", LABELLED)
def test_augmentation_of_a_recipe(name: str) -> None:
    ours, published = settings(name).finetune, read("mixup")[0]["cases"][0]["settings"]
    mixing = [published[key] for key in ("mixup_alpha", "cutmix_alpha", "label_smoothing")]
    assert [ours.mixup, ours.cutmix, ours.label_smoothing] == mixing
    assert ours.rand_augment == read("rand_augment")[0]["policy"]
    transform = clips_of(name).transform("finetune")
    assert (ours.crop_area, ours.crop_aspect, ours.flip_prob) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (ours.erase_prob, ours.drop_path) == (0.25, 0.1) and transform is not None


def test_clips_of_pretraining() -> None:
    config = settings("voxceleb2")
    clips = clip_config(config, configure_model(f"mae_{config.model}", config.model_overrides(pretraining=True)))
    _, file = read("indices")
    for (frames, _, stride, _, _, start), expected in zip(
        file["pretrain_cases"].tolist(), file["pretrain_indices"], strict=True
    ):
        assert stride == clips.stride
        indices = sampling.pretrain_indices(frames, clips.num_frames, clips.stride, Drawn(start))  # type: ignore[arg-type]
        assert indices.tolist() == expected.tolist()
    crops, masks = read("pretrain_crops")[0], read("masks")[0]["cases"][0]
    assert list(clips.crop_scales) == crops["scales"] and clips.size == (crops["input_size"],) * 2
    assert (clips.mask, clips.mask_ratio, list(clips.mask_window), list(clips.grid)) == (
        "region_window_tube", masks["ratio"], masks["window"], masks["grid"])  # fmt: skip
    frame = torch.zeros(16, 3, 224, 224, dtype=torch.uint8)
    assert clips.face_box == (0, 32, 160, 160) and clips.transform("pretrain")(frame, 0).shape == (3, 16, 160, 160)


def test_laboratory_sets_have_the_settings_of_dfew_and_say_why() -> None:
    for name in ("ravdess", "crema-d", "enterface05"):
        recipe = load_recipe(name)
        assert recipe.published == load_recipe("dfew").published and "published" in recipe.note


def test_reasons_are_there_for_all_that_differs() -> None:
    for name in RECIPES:
        recipe = load_recipe(name)
        assert recipe.differs.keys() <= recipe.published.keys()
        for key, value in recipe.differs.items():
            assert recipe.published[key] != value and recipe.reasons(key)
    assert any("positions" in reason for reason in load_recipe("voxceleb2").reasons("protocol"))
    assert any("UAR" in reason for reason in load_recipe("dfew").reasons("protocol"))


# What is shown.


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Rows of the table by their options, continuation lines joined."""
    assert train([*arguments, "--print"]) == 0
    rows: dict[str, list[str]] = {}
    last: list[str] = []
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            if cells[0]:
                last = rows.setdefault(cells[0], cells[1:])
            else:
                last[:] = [f"{old} {new}".strip() for old, new in zip(last, cells[1:], strict=True)]
    return rows


def test_what_differs_is_shown_with_its_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = shown(["--recipe", "DFEW", "--epochs=3", "--init-from=w.pth"], capsys)
    differ = {option: row for option, row in rows.items() if row[-1]}
    assert set(differ) == {"--protocol", "--amp", "--finetune-epochs"}
    assert differ["--finetune-epochs"] == ["3", "100", "given on the command line"]
    assert differ["--protocol"][:2] == ["corrected", "published"] and "Pillow" in differ["--protocol"][2]
    assert differ["--amp"][:2] == ["auto", "fp16"]
    assert rows["--finetune-lr"] == ["0.001 × 96/256 = 0.000375", "0.001", ""]
    assert "--pretrain-lr" not in rows and not list(tmp_path.iterdir())
    rows = shown(["--recipe", "dfew", "--protocol=published", "--amp=fp16"], capsys)
    assert {option for option, row in rows.items() if row[-1]} == {"--init-from"}
    assert "from scratch" in rows["--init-from"][2]


def test_a_preset_is_shown_with_the_sizes_of_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    rows = shown(["--preset=small", "--lr=1"], capsys)
    assert rows["--depth"] == [str(configure_model("lgi_former_small_patch16_160", {}).depth), ""]
    assert rows["--finetune-lr"][1] == rows["--pretrain-lr"][1] == "yes" and rows["--seed"] == ["0", ""]


# How it is changed, and refused.


def test_options_change_a_recipe() -> None:
    config = settings("Crema_D", "--stride=2", "--finetune-lr=0.1", "--protocol=published")
    assert (config.recipe, config.preset, config.stride) == ("crema-d", "base", 2)
    assert (config.finetune.lr, config.protocol, config.finetune.batch_size) == (0.1, "published", 96)


def test_another_model_has_sizes_of_its_own() -> None:
    config = settings("dfew", "--model=vit_base_patch16_160")
    model = configure_model(config.model, config.model_overrides(pretraining=False))
    assert (model.embed_dim, model.depth, model.num_heads, model.pool) == (768, 12, 12, "all")
    assert model.num_frames == 16 and config.finetune.layer_decay == 0.75


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe=dfw", "--print"], "did you mean dfew"),
        (["--recipe=", "--print"], "there are voxceleb2, dfew"),
        (["--recipe=dfew", "--preset=base", "--print"], "leave out --preset"),
        (["--recipe=dfew"], "needs --data FOLDER"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_config(arguments)


def test_a_recipe_of_a_file_must_be_known(tmp_path: Path) -> None:
    for values, words in (({"recipe": "mine"}, "there are voxceleb2"), ({"recipe": 5}, "recipe is 5")):
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(UserError, match=words):
            parse_config(["--resume", str(tmp_path)])


def describe(folder: Path, **values: object) -> None:
    (folder / "dataset.json").write_text(json.dumps(values))


def test_a_recipe_is_compared_with_what_the_folder_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_set(tmp_path / "set")
    command = ["--data", str(folder), "--recipe=dfew", *SMALL, "--output-dir"]
    describe(folder, set="mafw", stride=4)
    assert train([*command, str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "says that this is mafw" in error and "give --recipe mafw" in error and error.count("\n") == 1
    describe(folder, set="dfew", clips="clip_224x224_16f", stride=1)
    assert train([*command, str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "(clip_224x224_16f) want --stride 1" in error and "or --stride 4" in error and not (tmp_path / "a").exists()
    assert train([*command, str(tmp_path / "a"), "--stride=1"]) == 0
    output = capsys.readouterr().out
    assert "the published run starts from the weights of --recipe voxceleb2" in output
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert metrics["recipe"] == written["recipe"] == "dfew" and metrics["provenance"]["data"]["set"] == "dfew"
    assert train(["--resume", str(tmp_path / "a"), "--finetune-epochs=2"]) == 0, "it was accepted when it began"
    capsys.readouterr()
    assert train(["--data", str(folder), *SMALL, "--output-dir", str(tmp_path / "b"), "--stage=finetune"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("note: ") and "want --stride 1, and this run has --stride 2" in error
