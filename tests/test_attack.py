"""Runs that are killed, interrupted and starved at random moments: they end bit for bit where undisturbed runs end.

The long version, `pytest -m full tests/test_attack.py`, kills twenty runs with each number of workers.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_dfer.checkpoint import load_weights
from mae_dfer.train import main as train
from mae_dfer.training.run import RunFolder

TINY = ["--img-size=32", "--patch-size=8", "--num-frames=4", "--region-size=1,2,4", "--embed-dim=16", "--depth=1",
        "--num-heads=1", "--decoder-embed-dim=16", "--decoder-depth=1", "--decoder-num-heads=1", "--batch-size=4",
        "--pretrain-mask-ratio=0.5", "--device=cpu", "--epochs=3", "--save-every=0"]  # fmt: skip
LONGEST = 120.0  # seconds that no run of these takes

# Children are forked from a process that has imported everything and computed nothing.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["mae_dfer.train", "mae_dfer.training.loop", "mae_dfer.training.evaluate"])


def _run(argv, output):
    os.setsid()
    with open(output, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    torch.set_num_threads(1)
    sys.exit(train(argv))


def start(argv, output):
    process = context.Process(target=_run, args=([str(argument) for argument in argv], output))
    process.start()
    return process


def finish(process):
    process.join(LONGEST)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def members(session):
    """Processes that are left of a run: it is the leader of its session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            # pid (name) state parent group session …; the name may hold anything
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:  # it has just ended
            continue
        if fields and fields[0] != "Z" and int(fields[3]) == session:
            found.append(int(entry.name))
    return found


def assert_gone(session):
    deadline = time.monotonic() + 30
    while members(session):
        assert time.monotonic() < deadline, f"processes are left: {members(session)}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight training and four test images of two kinds: no video has to be decoded."""
    path = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for index in range(count):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path / f"{split}{index}.png")
        (path / f"{split}.txt").write_text("".join(f"{split}{index}.png {index % 2}\n" for index in range(count)))
    (path / "classes.txt").write_text("left\nright\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    assert finish(start(["--data", folder, "--output-dir", path, "--workers=0", *TINY], f"{path}.txt")) == 0
    return path, time.monotonic() - began


def assert_same_end(path, undisturbed):
    for stage in ("pretrain", "finetune"):
        ours, theirs = (RunFolder(folder, write=False).list_checkpoints(stage)[-1] for folder in (path, undisturbed))
        assert (ours.epoch, ours.step) == (theirs.epoch, theirs.step)
        for (name, value), (other, expected) in zip(
            load_weights(ours.weights)[0].items(), load_weights(theirs.weights)[0].items(), strict=True
        ):
            assert name == other and torch.equal(value, expected), name
    assert (path / "predictions.csv").read_bytes() == (undisturbed / "predictions.csv").read_bytes()


def assert_clean(path):
    """Every record is strict JSON, and no half-written file is left."""
    text = (path / "log.jsonl").read_text()
    for line in text.splitlines():
        try:
            json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
        except json.JSONDecodeError:  # a line that a kill cut short stays what it is
            assert not line.endswith("}")
    json.loads((path / "metrics.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    left = [entry for entry in path.rglob(".*.tmp*")]
    assert not left, left


def disturb(folder, path, workers, length, rng, stop):
    """Starts a run, and resumes it, each time to ``stop`` it at a random moment, until it ends by itself."""
    argv = ["--data", folder, "--output-dir", path, f"--workers={workers}", *TINY]
    for count in range(12):
        process = start(argv, f"{path}.txt")
        process.join(rng.uniform(0.1, 1.1) * length)
        if process.exitcode is None:
            stop(process)
        code = finish(process)
        assert_gone(process.pid)
        output = Path(f"{path}.txt").read_text()
        assert "Traceback" not in output, output
        if code == 0:
            return count
        if (path / "config.json").exists():
            argv = ["--resume", path, f"--workers={workers}"]
    assert finish(start(["--resume", path, "--workers=0"], f"{path}.txt")) == 0
    return 12


@pytest.mark.parametrize(
    ("workers", "runs"),
    [(0, 2), (2, 1), pytest.param(0, 20, marks=pytest.mark.full), pytest.param(2, 20, marks=pytest.mark.full)],
)
def test_killed_runs_end_where_undisturbed_ones_end(folder, undisturbed, tmp_path, workers, runs):
    rng = random.Random(workers)
    for index in range(runs):
        path = tmp_path / f"run{index}"
        disturb(folder, path, workers, undisturbed[1], rng, lambda process: process.kill())
        assert_same_end(path, undisturbed[0])
        assert_clean(path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_runs_end_where_undisturbed_ones_end(folder, undisturbed, tmp_path, number, code):
    codes = []

    def interrupt(process):
        os.killpg(process.pid, number)  # as a terminal and a job scheduler do
        codes.append(finish(process))

    path = tmp_path / "run"
    disturb(folder, path, 0, undisturbed[1], random.Random(number), interrupt)
    assert set(codes) <= {code, -number, 0}
    assert_same_end(path, undisturbed[0])
    assert_clean(path)
