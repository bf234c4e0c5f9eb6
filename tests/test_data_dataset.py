"""The data set and its loader: everything is a function of (seed, epoch, item)."""

import pickle
import runpy
import sys
from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from mae_dfer.data import (
    ClipConfig,
    ClipDataset,
    EpochSampler,
    Failure,
    Sample,
    check_files,
    collate,
    make_loader,
    probe,
)
from mae_dfer.data import check as check_module
from mae_dfer.errors import UserError

CONFIG = ClipConfig(num_frames=4, stride=2, img_size=32, grid=(2, 2, 2), mask_window=(1, 2), mask_ratio=0.5)


def write_video(path, num_frames, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 6, 6, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for frame in frames.repeat(8, axis=1).repeat(8, axis=2):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Seven clips, the fourth of them broken."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(7):
        if i == 3:
            (folder / "3.mp4").write_text("no video")
        else:
            write_video(folder / f"{i}.mp4", 12 + i, seed=i)
    return [Sample(str(folder / f"{i}.mp4"), i % 3) for i in range(7)]


def same(one, two):
    assert one.keys() == two.keys()
    return all(
        torch.equal(one[k], two[k]) if isinstance(one[k], torch.Tensor) else one[k] == two[k] for k in one
    )


def batches(samples, mode, *, epoch=0, start=0, num_workers=0, batch_size=2, seed=7):
    dataset = ClipDataset(samples, CONFIG, mode, seed)
    sampler = EpochSampler(len(dataset), seed=seed, epoch=epoch, start=start, shuffle=mode != "test")
    return list(make_loader(dataset, sampler, batch_size, num_workers=num_workers))


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "test"])
def test_items(samples, mode):
    dataset = ClipDataset(samples, CONFIG, mode, seed=1)
    item = dataset[0, 2]
    assert item["clip"].shape == (3, 4, 32, 32) and item["clip"].dtype == torch.float32
    assert (item["index"], item["view"]) == ((1, 0) if mode == "test" else (2, 0))
    assert item["label"] == samples[item["index"]].label
    assert ("mask" in item) == (mode == "pretrain")


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_an_item_is_a_function_of_seed_epoch_and_index(samples, mode):
    item = ClipDataset(samples, CONFIG, mode, seed=1)[3, 2]
    np.random.seed(0), torch.manual_seed(0)
    assert same(item, ClipDataset(samples, CONFIG, mode, seed=1)[3, 2])
    for seed, epoch in ((1, 4), (2, 3)):
        other = ClipDataset(samples, CONFIG, mode, seed=seed)[epoch, 2]
        assert not torch.equal(item["clip"], other["clip"])


def test_test_clips_do_not_depend_on_seed_or_epoch(samples):
    assert same(ClipDataset(samples, CONFIG, "test", 1)[0, 5], ClipDataset(samples, CONFIG, "test", 2)[9, 5])


def test_views_are_the_segments_and_identical_crops_run_once(samples):
    dataset = ClipDataset(samples, CONFIG, "test")
    assert CONFIG.num_crops == 2 and len(dataset) == 2 * len(samples)
    # Sample 6 has 18 frames: 9 at stride 2, segments of 4 from 0 and 5.
    first, second = dataset[0, 12], dataset[0, 13]
    assert [(i["index"], i["view"]) for i in (first, second)] == [(6, 0), (6, 1)]
    assert not torch.equal(first["clip"], second["clip"])


def test_masks_differ_between_clips_but_not_in_count(samples):
    config = ClipConfig(num_frames=4, stride=2, img_size=32)
    masks = [ClipDataset(samples, config, "pretrain")[epoch, 0]["mask"] for epoch in range(3)]
    assert {int(m.sum()) for m in masks} == {720}
    assert not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "test"])
def test_worker_count_does_not_matter(samples, mode):
    alone, many = batches(samples, mode), batches(samples, mode, num_workers=2)
    assert len(alone) == len(many)
    assert all(same(a, b) for a, b in zip(alone, many, strict=True))


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "test"])
def test_a_data_set_survives_pickling_as_spawned_workers_need(samples, mode):
    dataset = ClipDataset(samples, CONFIG, mode, seed=1)
    assert same(pickle.loads(pickle.dumps(dataset))[0, 2], dataset[0, 2])


def test_resuming_inside_an_epoch_continues_it(samples):
    whole = batches(samples, "pretrain", epoch=2)
    rest = batches(samples, "pretrain", epoch=2, start=4)
    assert all(same(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_persistent_workers_follow_the_epoch(samples):
    dataset = ClipDataset(samples, CONFIG, "finetune", 7)
    sampler = EpochSampler(len(dataset), seed=7)
    loader = make_loader(dataset, sampler, 2, num_workers=1)
    assert loader.persistent_workers
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        expected = batches(samples, "finetune", epoch=epoch)
        assert all(same(a, b) for a, b in zip(loader, expected, strict=True))


def test_a_broken_file_is_a_failure_in_its_batch(samples):
    found = [f for batch in batches(samples, "test") for f in batch["failures"]]
    assert [(f.path, f.index, f.view) for f in found] == [(samples[3].path, 3, 0), (samples[3].path, 3, 1)]
    assert "not a readable video" in found[0].reason
    sizes = [batch["size"] for batch in batches(samples, "test")]
    assert sum(sizes) == 12 and len(sizes) == 7


def test_a_batch_of_failures_only_has_size_zero():
    batch = collate([Failure("a", "b"), Failure("c", "d")])
    assert batch["size"] == 0 and len(batch["failures"]) == 2 and "clip" not in batch


def test_a_face_box_outside_the_frame_fails_that_file_only(samples):
    config = ClipConfig(num_frames=4, img_size=32, face_box=(0, 32, 160, 160))
    assert "face_box" in ClipDataset(samples, config, "pretrain")[0, 0].reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "train"}, "pretrain, finetune, test"),
        ({"samples": []}, "at least one"),
        ({"seed": -1}, "seed"),
        ({"config": ClipConfig(grid=(8, 9, 10))}, "divide the token grid"),
    ],
)
def test_impossible_data_sets_are_refused(samples, change, message):
    with pytest.raises(UserError, match=message):
        ClipDataset(**({"samples": samples, "config": CONFIG, "mode": "pretrain"} | change))


@pytest.mark.parametrize("settings", [{"stride": 0}, {"img_size": (0, 5)}, {"mask": "tubes"}], ids=str)
def test_impossible_configs_are_refused(settings):
    with pytest.raises(UserError):
        ClipConfig(**settings)


def order(n, **settings):
    return [item for _, item in EpochSampler(n, **settings)]


def test_the_order_is_a_function_of_seed_and_epoch():
    assert order(50, seed=1, epoch=2) == order(50, seed=1, epoch=2)
    assert sorted(order(50, seed=1)) == list(range(50))
    assert len({tuple(order(50, seed=s, epoch=e)) for s in (1, 2) for e in (0, 1)}) == 4
    assert order(5, shuffle=False) == [0, 1, 2, 3, 4]


def test_training_ranks_get_equally_many_and_nothing_twice():
    shares = [order(11, seed=3, rank=rank, world_size=4) for rank in range(4)]
    assert [len(s) for s in shares] == [2] * 4
    assert len({i for s in shares for i in s}) == 8


def test_evaluation_ranks_share_every_item_once():
    samplers = [EpochSampler(11, shuffle=False, rank=rank, world_size=4) for rank in range(4)]
    assert [len(s) for s in samplers] == [3, 3, 3, 2]
    assert sorted(i for s in samplers for _, i in s) == list(range(11))


def test_start_skips_what_a_rank_has_used():
    whole = list(EpochSampler(11, seed=3, epoch=5, rank=1, world_size=2))
    resumed = EpochSampler(11, seed=3, epoch=5, rank=1, world_size=2, start=3)
    assert list(resumed) == whole[3:] and len(resumed) == 2
    resumed.set_epoch(6)
    assert len(resumed) == 5 and {epoch for epoch, _ in resumed} == {6}


@pytest.mark.parametrize(
    "settings", [{"rank": 2, "world_size": 2}, {"start": 12}, {"epoch": -1}, {"world_size": 20}], ids=str
)
def test_impossible_samplers_are_refused(settings):
    with pytest.raises(UserError):
        EpochSampler(11, **settings)


def test_a_sampler_of_another_length_is_refused(samples):
    dataset = ClipDataset(samples, CONFIG, "test")  # two views per sample
    with pytest.raises(UserError, match="counts 7 items, the dataset has 14"):
        make_loader(dataset, EpochSampler(7), 2)


def test_check_files_finds_the_broken_one(samples, monkeypatch):
    monkeypatch.setattr(probe, "_SLICE", 2)
    failures = check_files(samples, progress=False)
    assert [(f.path, f.index) for f in failures] == [(samples[3].path, 3)]


def test_check_command_reports_and_exits(samples, tmp_path, capsys):
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{i}.mp4 0\n" for i in range(7)))
    root = samples[0].path.rsplit("/", 1)[0]
    assert check_module.main([str(listing), "--root", root]) == 1
    header, report = (tmp_path / "list.txt.broken.txt").read_text().split("\n", 1)
    assert header.startswith("# ") and report.startswith(samples[3].path + "\t") and report.count("\n") == 1
    assert "1 of 7 files" in capsys.readouterr().out
    listing.write_text("0.mp4\n1.mp4\n")
    assert check_module.main([str(listing), "--root", root, "--report", str(tmp_path / "r")]) == 0
    assert not (tmp_path / "r").exists(), "there is nothing to report"
    assert check_module.main([str(tmp_path / "no.txt")]) == 2
    assert capsys.readouterr().err.startswith("error: list file not found")


def test_check_runs_as_a_module(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "mae_dfer.data.check")
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path / "no.txt")])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("mae_dfer.data.check", run_name="__main__")
    assert left.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_cache_changes_nothing_but_the_decoding(samples, monkeypatch):
    from mae_dfer.data import dataset as dataset_module

    opened = []
    real = dataset_module.open_video
    spy = lambda path, **options: opened.append(path) or real(path, **options)  # noqa: E731
    monkeypatch.setattr(dataset_module, "open_video", spy)
    good = [samples[0], samples[1]]
    plain = ClipDataset(good, CONFIG, "finetune", 7)
    one_video = 12 * 48 * 48 * 3  # the first video fits, the second does not
    cached = ClipDataset(good, replace(CONFIG, cache_gb=one_video / 1e9), "finetune", 7)
    for epoch in range(3):
        for item in range(2):
            assert same(plain[(epoch, item)], cached[(epoch, item)])
    assert opened.count(good[0].path) == 3 + 1
    assert opened.count(good[1].path) == 3 + 3
