"""The published protocol, number by number: every file of tests/golden/protocol/ (its README gives the rules).

`pytest tests/test_protocol.py --junit-xml FILE` also records the largest difference of each test.
"""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from published import build, published_weights, seeded
from torch.nn import functional as F

from mae_dfer import create_model, load_official
from mae_dfer.checkpoint import to_official
from mae_dfer.config import FinetuneConfig, PretrainConfig, preset
from mae_dfer.data import ClipConfig, sampling, transforms
from mae_dfer.data.masks import region_window_tube_mask, tube_mask
from mae_dfer.data.transforms import FinetuneTransform, PretrainTransform, TestTransform
from mae_dfer.losses import reconstruction_loss, reconstruction_loss_terms, reconstruction_targets
from mae_dfer.training.evaluate import mean_over_views
from mae_dfer.training.finetune import build_classifier
from mae_dfer.training.inputs import clip_config
from mae_dfer.training.metrics import classification_report
from mae_dfer.training.mixing import Mix
from mae_dfer.training.optim import Optimizers, parameter_groups, schedule

PLAIN = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip_prob": 0.0, "erase_prob": 0.0}
FOLDER = Path(__file__).parent / "golden" / "protocol"


def read(name):
    file = np.load(FOLDER / f"{name}.npz")
    return json.loads(str(file["config"])), file


def cases(name):
    return list(enumerate(read(name)[0]["cases"]))


@pytest.fixture
def check(record_property):
    """Asserts that the largest difference of two arrays is within a bound, and records it."""

    def check(actual, expected, bound=0.0):
        actual, expected = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        assert actual.shape == expected.shape
        largest = float(np.abs(actual - expected).max())
        record_property("largest difference", largest)
        assert largest <= bound

    return check


def smooth_video(seed, frames, height, width):
    """The README's video: box sums of seeded noise, stretched to 0 … 255."""
    noise = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.int64)
    for axis in (1, 2):
        noise = sum(np.roll(noise, shift, axis) for shift in range(-4, 5))
    low, high = noise.min(), noise.max()
    return torch.from_numpy(((noise - low) * 255 // (high - low)).astype(np.uint8)).permute(0, 3, 1, 2)


# Which frames.


class Drawn:
    """A generator that draws one number, once, and knows among how many."""

    def __init__(self, value):
        self.value, self.choices = value, None

    def integers(self, choices):
        assert self.choices is None
        self.choices = choices
        return self.value


def test_indices_of_test_views():
    _, file = read("indices")
    for (frames, length, stride, segments, _, segment, _), expected in zip(
        file["test_cases"].tolist(), file["test_indices"], strict=True
    ):
        assert sampling.test_indices(frames, length, stride, segments)[segment].tolist() == expected[:length].tolist()


def test_indices_of_finetuning_clips():
    _, file = read("indices")
    for (frames, length, stride, _, low, high, end, _), expected in zip(
        file["finetune_cases"].tolist(), file["finetune_indices"], strict=True
    ):
        rng = Drawn(end - low)
        assert sampling.finetune_indices(frames, length, stride, rng).tolist() == expected[:length].tolist()
        assert rng.choices == (high - low if end >= 0 else None)


def test_indices_of_pretraining_clips():
    _, file = read("indices")
    for (frames, length, stride, _, high, start), expected in zip(
        file["pretrain_cases"].tolist(), file["pretrain_indices"], strict=True
    ):
        rng = Drawn(start)
        assert sampling.pretrain_indices(frames, length, stride, rng).tolist() == expected[:length].tolist()
        assert rng.choices == (high if high >= 0 else None)


# Which pixels.


@pytest.mark.parametrize(("index", "case"), cases("test_transform"))
def test_pixels_of_the_test_transform(index, case, check):
    config, file = read("test_transform")
    video = smooth_video(case["seed"], 8, case["height"], case["width"])
    assert int(video.sum()) == case["input_sum"]
    size = config["input_size"]
    clip = TestTransform((size, size))(video).double().numpy()
    every = slice(size // 20, None, size // 10)
    actual = [clip[:, 0, :4, :4].ravel(), clip[:, :, every, every].ravel(), [np.linalg.norm(clip) / 1000]]
    expected = [file[f"corner_{index}"].ravel(), file[f"grid_{index}"].ravel(), [case["norm"] / 1000]]
    check(np.concatenate(actual), np.concatenate(expected), 1e-6)


@pytest.mark.parametrize("seed", read("rand_augment")[0]["seeds"])
def test_pixels_of_rand_augment(seed, check):
    config, file = read("rand_augment")
    size = config["size"]
    transform = FinetuneTransform((size, size), rand_augment=config["policy"], **PLAIN)
    video = smooth_video(config["input_seed"], config["frames"], size, size)
    with transforms.seeded(seed):
        frames = transform.augment(video)
    check(frames.permute(0, 2, 3, 1)[:, 4::8, 4::8].numpy(), file["output"][config["seeds"].index(seed)])


@pytest.mark.parametrize(("index", "case"), cases("pretrain_crops"))
def test_boxes_of_the_multi_scale_crop(index, case):
    config, file = read("pretrain_crops")
    size = config["input_size"]
    transform = PretrainTransform((size, size), tuple(config["scales"]))
    expected = dict(zip(map(tuple, file[f"boxes_{index}"].tolist()), file[f"counts_{index}"].tolist(), strict=True))
    with transforms.seeded(0):
        drawn = collections.Counter(transform.draw_box(case["height"], case["width"]) for _ in range(40000))
    assert drawn == expected


def test_the_published_protocol_resizes_as_pillow_does():
    video = smooth_video(0, 2, 200, 224)
    expected = TestTransform((160, 160))(video)
    for protocol, equal in (("published", True), ("corrected", False)):
        clip = ClipConfig(protocol=protocol, rand_augment="", **PLAIN).transform("finetune")(video, 0)
        assert torch.equal(clip, expected) is equal
        assert (clip - expected).abs().max() < 2.1 / 255 / 0.224


def test_the_recipe_of_the_base_preset():
    config = preset("base")
    clips = clip_config(config, build_meta_classifier(config))
    assert (clips.num_frames, clips.stride, clips.size, clips.mask_ratio) == (16, 4, (160, 160), 0.9)
    assert (clips.rand_augment, clips.erase_prob, clips.flip_prob) == ("rand-m7-n4-mstd0.5-inc1", 0.25, 0.5)
    assert (clips.crop_area, clips.crop_aspect, clips.num_segments) == ((0.08, 1.0), (3 / 4, 4 / 3), 2)
    assert (config.finetune.mixup, config.finetune.cutmix, config.finetune.label_smoothing) == (0.8, 1.0, 0.1)


def build_meta_classifier(config):
    with torch.device("meta"):
        return build_classifier(config, 7).config


@pytest.mark.parametrize(("index", "case"), cases("mixup"))
def test_mixed_clips_and_targets(index, case, check):
    config, file = read("mixup")
    settings = case["settings"]
    assert (settings["prob"], settings["switch_prob"]) == (1.0, 0.5)
    clip, labels = seeded(case["input_seed"], config["shape"]), torch.tensor(case["labels"])
    mix = Mix(config["classes"], settings["mixup_alpha"], settings["cutmix_alpha"], settings["label_smoothing"])
    np.random.seed(case["np_random_seed"])
    mixed, target = mix(clip, labels)
    check(torch.cat((mixed.flatten(), target.flatten())), np.concatenate([file[f"{name}_{index}"].ravel()
          for name in ("output", "target")]), 1e-7)  # fmt: skip


# Which tokens.


@pytest.mark.parametrize(("index", "case"), cases("masks"))
def test_masks_keep_what_the_published_ones_keep(index, case):
    """By structure and by frequency: our draws come from another generator."""
    _, file = read("masks")
    (t, h, w), window, kind = case["grid"], case["window"], case["kind"]
    symmetry = kind.split("symmetric ")[1] if "symmetric" in kind else "none"

    def draw(rng):
        if window is None:
            return tube_mask((t, h, w), case["ratio"], rng).numpy()
        return region_window_tube_mask((t, h, w), case["ratio"], window, rng, symmetry=symmetry).numpy()

    def describe(mask):
        """Visible cells of each window and time step; whether any lies in each window's left and right half."""
        wh, ww = window or (h, w)
        visible = ~mask.reshape(t, h // wh, wh, w // ww, ww)
        assert (visible == visible[:1]).all()
        halves = [half.any(axis=(1, 3)).ravel() for half in np.split(visible[0], [ww // 2], axis=-1)]
        return visible.sum(axis=(2, 4)).reshape(t, -1), np.stack(halves, axis=-1)

    for published, counts, sides in zip(
        file[f"masks_{index}"], file[f"visible_per_window_{index}"], file[f"sides_{index}"], strict=True
    ):
        found = describe(published)
        assert (found[0] == counts).all() and (found[1] == sides).all()
    rng = np.random.default_rng(0)
    ours = np.stack([draw(rng) for _ in range(4000)])
    for mask in ours[:20]:
        counts, sides = describe(mask)
        assert (counts == case["visible_per_window"]).all()
        if symmetry != "none":
            assert (sides.sum(axis=-1) == 1).all()
        if symmetry == "global":
            assert (sides == sides[0]).all()
    # Cells are visible equally often, give or take five standard deviations, here as in 4000 published masks.
    share = case["visible_per_window"] / np.prod(window or (h, w))
    allowed = 5 * np.sqrt(4000 * share * (1 - share))
    for count in (file[f"visible_count_{index}"], (~ours.reshape(-1, t, h, w)[:, 0]).sum(axis=0)):
        assert np.abs(count - 4000 * share).max() <= allowed


# How weights start and move.


@pytest.mark.parametrize("kind", ["classifier", "pretrain"])
def test_initial_values(kind):
    config, file = read("init")
    names = ("img_size", "num_frames", "embed_dim", "depth", "num_heads")
    sizes = {name: config["model"][name] for name in names}
    if kind == "pretrain":
        names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
        sizes |= {name: config["model"][name] for name in names}
    torch.manual_seed(0)
    model = create_model("mae_" * (kind == "pretrain") + "lgi_former_base_patch16_160", **sizes)
    weights, expected = to_official(model), json.loads(str(file[kind]))
    assert set(weights) == set(expected)
    for name, (shape, mean, deviation, largest) in expected.items():
        values = weights[name].double()
        assert list(values.shape) == shape, name
        few = 4 * max(deviation, 1e-12) / values.numel() ** 0.5  # four standard errors, of theirs and of ours
        assert float(values.mean()) == pytest.approx(mean, abs=2 * few), name
        assert float(values.std()) == pytest.approx(deviation, rel=6 / values.numel() ** 0.5, abs=1e-12), name
        # Bounded distributions reach their bound; the largest of normal values differs from draw to draw.
        bounded = largest < 2.5 * deviation
        assert float(values.abs().max()) == pytest.approx(largest, rel=0.01 if bounded else 0.3), name


@pytest.mark.parametrize("case", ["base_depth16", "depth4", "pretrain_depth4"])
def test_parameter_groups(case):
    config, file = read("layer_groups")
    settings, expected = config["cases"][case], json.loads(str(file[f"groups_{case}"]))
    pretraining = settings["model"] == "pretrain"
    sizes = {"embed_dim": 8, "num_heads": 1, "depth": settings.get("depth", settings.get("encoder_depth"))}
    if pretraining:
        sizes |= {"decoder_embed_dim": 8, "decoder_num_heads": 1, "decoder_depth": settings["decoder_depth"]}
    model = create_model("mae_" * pretraining + "lgi_former_base_patch16_160", **sizes)
    decay = settings.get("layer_decay", 1.0)
    groups = parameter_groups(model, settings["wd"], decay, decay_representatives=pretraining)
    numbers = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    found = []
    for number, (name, parameter) in enumerate(model.named_parameters()):
        found.append([None if pretraining else model.layer_index(name), *numbers[id(parameter)]])
        parameter.data.fill_(number)  # which the mapping of names then carries to the published ones
    assert {name: found[int(value.flatten()[0])] for name, value in to_official(model).items()} == expected
    if pretraining:  # by default tokens are not decayed
        exempt = {id(p) for g in parameter_groups(model, settings["wd"]) if not g["weight_decay"] for p in g["params"]}
        assert id(model.encoder.representative_tokens) in exempt and id(model.mask_token) in exempt


@pytest.mark.parametrize("case", read("schedule")[0]["cases"])
def test_schedules(case, check):
    config, file = read("schedule")
    values = config["cases"][case]
    steps, epochs = values["steps_per_epoch"], values["epochs"]
    if case.startswith("lr_"):
        settings = PretrainConfig(
            epochs=epochs, batch_size=values["batch"], lr=values["lr_per_256"], min_lr=values["min_lr_per_256"],
            warmup_epochs=values["warmup_epochs"],
        )  # fmt: skip
    else:
        settings = PretrainConfig(
            epochs=epochs, weight_decay=values["weight_decay"], weight_decay_end=values["weight_decay_end"]
        )
    made = [schedule(settings, step, steps) for step in range(epochs * steps)]
    check([rate for rate, _ in made] if case.startswith("lr_") else [decay for _, decay in made], file[case], 1e-15)


def train(model, settings, config, losses, decay_representatives=False):
    """Steps of the loop's parts; yields each step's figures, gradient norm and learning rate."""
    optimizers = Optimizers(model, settings, decay_representatives=decay_representatives)
    scaler = torch.amp.GradScaler(enabled=False)
    for step in range(config["training"]["steps"]):
        rate, weight_decay = schedule(settings, step, config["training"]["steps_per_epoch"])
        optimizers.set_rates(rate, weight_decay)
        figures = losses(step)
        figures["loss"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizers.step(scaler, model.parameters(), 0.0)
        yield {name: value.item() for name, value in figures.items()} | {"grad_norm": norm.item(), "lr": rate}


def settings_of(kind, training, batch, **more):
    return kind(
        epochs=training["epochs"], batch_size=batch, lr=training["peak"] * 256 / batch,
        min_lr=training["minimum"] * 256 / batch, warmup_epochs=training["warmup_epochs"],
        weight_decay=training["weight_decay"], beta2=training["betas"][1], **more,
    )  # fmt: skip


def first_values(model, names):
    weights = to_official(model)
    return [weights[name].flatten()[:16].numpy() for name in names]


def clip_of(config, step):
    shape = (config["batch"], 3, config["model"]["num_frames"], *config["model"]["img_size"])
    return seeded(config["seed"] + step, shape)


def test_six_steps_of_finetuning(check):
    config, file = read("train_finetune")
    meta, training = json.loads(str(file["meta"])), config["training"]
    model = build(config["model"], fused_attn=False).double().train()
    load_official(model, published_weights(meta["shapes"]))

    def losses(step):
        rng = np.random.default_rng(config["seed"] + 1000 + step)
        label = torch.from_numpy(rng.integers(0, config["model"]["num_classes"], config["batch"]))
        return {"loss": F.cross_entropy(model(clip_of(config, step)), label, label_smoothing=0.1)}

    settings = settings_of(FinetuneConfig, training, config["batch"], layer_decay=training["layer_decay"])
    steps = list(train(model, settings, config, losses))
    norms = {name: value.norm().item() for name, value in to_official(model).items()}
    actual = [[step[name] for step in steps] for name in ("loss", "grad_norm", "lr")]
    actual += [*first_values(model, config["head_names"]), model.eval()(clip_of(config, 0)).detach().numpy().ravel()]
    expected = [file[name] for name in ("loss", "grad_norm", "lr")]
    expected += [*(file[f"head_{i}"] for i in range(len(config["head_names"]))), file["logits"].ravel()]
    actual.append([norms[name] for name in meta["final_norms"]])
    expected.append(list(meta["final_norms"].values()))
    check(np.concatenate(actual), np.concatenate(expected), 1e-9)


@pytest.mark.parametrize("run", ["published", "tokens_exempt"])
def test_six_steps_of_pretraining(run, check):
    config, file = read("train_pretrain")
    meta = json.loads(str(file["meta"]))
    model = build(config["model"], fused_attn=False, patch_size=16).double().train()
    load_official(model, published_weights(meta["shapes"]))

    def losses(step):
        clip, mask = clip_of(config, step), torch.from_numpy(file["masks"][step])
        pred, target = model(clip, mask), reconstruction_targets(clip, mask)
        appearance, motion = reconstruction_loss_terms(pred, target)
        return {"loss": reconstruction_loss(pred, target), "loss_appearance": appearance, "loss_motion": motion}

    settings = settings_of(PretrainConfig, config["training"], config["batch"])
    steps = list(train(model, settings, config, losses, decay_representatives=run == "published"))
    names = ("loss", "loss_appearance", "loss_motion", "grad_norm")
    actual = [[step[name] for step in steps] for name in (*names, "lr")] + first_values(model, config["head_names"])
    expected = [file[f"{name}_{run}"] for name in (*names, "lr_used")]
    expected += [file[f"head_{i}_{run}"] for i in range(len(config["head_names"]))]
    norms, wanted = to_official(model), meta[f"final_norms_{run}"]
    actual.append([norms[name].norm().item() for name in wanted])
    expected.append(list(wanted.values()))
    check(np.concatenate(actual), np.concatenate(expected), 1e-9)


def test_the_published_protocol_reaches_models_and_optimisers():
    config = preset("base")
    assert "decoder_positions" not in config.model_overrides(pretraining=True)
    config.protocol = "published"
    assert config.model_overrides(pretraining=True)["decoder_positions"] == "published"
    assert "decoder_positions" not in config.model_overrides(pretraining=False)


# What is scored.


@pytest.mark.parametrize(("index", "case"), cases("metrics"))
def test_scores(index, case, check):
    _, file = read("metrics")
    labels, predictions = (file[f"{name}_{index}"].astype(np.int64) for name in ("labels", "predictions"))
    scores = np.random.default_rng(case["seed"] + 1000).standard_normal((case["clips"], case["classes"]))
    scores[np.arange(len(labels)), labels] += 1.5
    scores[:, ~np.isin(np.arange(case["classes"]), predictions)] = -9.0  # "absent_never_predicted"
    assert (scores.argmax(1) == predictions).all()
    classes = [str(number) for number in range(case["classes"])]
    report = classification_report(labels, predictions, classes, scores, protocol="published")
    assert (report["uar"] is None) == (case["uar"] is None)
    names = ["war", "macro_f1", "weighted_f1", *(["uar"] if case["uar"] is not None else [])]
    actual, expected = [report[name] for name in names], [case[name] for name in names]
    check([*actual, 100 * report["top5"]], [*expected, case["acc5"]], 1e-12)
    # Where a class is predicted that has no clips, ours is the mean over the classes that have.
    assert classification_report(labels, predictions, classes)["uar"] is not None


def test_views_are_averaged_as_probabilities(check):
    """A repeated entry is left out here: no clip comes twice in our evaluation (tests/test_data_dataset.py)."""
    _, file = read("merge")
    first = file["views"][:, 4] == 0
    rows = torch.from_numpy(file["logits"]).softmax(-1).numpy()
    parts = [(file["views"][first & (file["views"][:, 0] == rank), 3], rows[first & (file["views"][:, 0] == rank)])
             for rank in range(3)]  # fmt: skip
    merged = mean_over_views(parts, 5)
    assert merged.argmax(1).tolist() == file["predictions"].tolist()
    check(merged, file["probabilities"], 1e-12)


def test_every_file_has_a_test():
    source = Path(__file__).read_text()
    for path in FOLDER.glob("*.npz"):
        assert f'read("{path.stem}")' in source, path.name
