"""Runs that are killed and interrupted at random moments: they end bit for bit where undisturbed runs end.

A moment is one of the run's own acts: it opens, renames or removes a file of its folder, or makes a folder; and some
milliseconds after it, in which the run computes. So it does not depend on how fast a machine is.

The long version, `pytest -m full tests/test_attack.py`, kills twenty runs with each number of workers.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
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


class Acts:
    """Counts what a run does in its folder, and ends it at one of these acts."""

    EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}

    def __init__(self, folder, at, number, delay):
        self.folder, self.at, self.number, self.delay, self.count = str(folder), at, number, delay, 0
        self.process = os.getpid()
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if event in self.EVENTS and str(arguments[0]).startswith(self.folder) and os.getpid() == self.process:
            self.count += 1
            if self.count == self.at:
                if self.delay:
                    threading.Timer(self.delay, self._end).start()
                else:
                    self._end()

    def _end(self):
        if self.number == signal.SIGKILL:
            os.kill(self.process, self.number)
        else:
            os.killpg(self.process, self.number)  # as a terminal and a job scheduler do


def _run(argv, output, folder, at, number, delay):
    os.setsid()
    with open(output, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # as in a process of its own
    torch.set_num_threads(1)
    acts = Acts(folder, at, number, delay)
    code = train(argv)
    Path(f"{output}.acts").write_text(str(acts.count))
    sys.exit(code)


def start(argv, folder, at=None, number=signal.SIGKILL, delay=0.0):
    """A run in ``folder``, whose process sends itself the signal ``number`` some time after its act ``at``."""
    argv = [str(argument) for argument in argv]
    process = context.Process(target=_run, args=(argv, f"{folder}.txt", folder, at, number, delay))
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
    """A run that nothing disturbs, and how many acts it consists of."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert finish(start(["--data", folder, "--output-dir", path, "--workers=0", *TINY], path)) == 0
    return path, int(Path(f"{path}.txt.acts").read_text())


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


def disturb(folder, path, workers, acts, rng, number=signal.SIGKILL):
    """Starts a run, and resumes it, each time to end it at a random moment, until it ends by itself; its exit codes."""
    argv, codes = ["--data", folder, "--output-dir", path, f"--workers={workers}", *TINY], []
    while 0 not in codes:
        # The first act that is drawn comes in any case; of a run that is nearly done, perhaps none.
        at = rng.randint(1, acts - 1) if len(codes) < 12 else None
        process = start(argv, path, at, number, rng.choice([0.0, rng.uniform(0, 0.05)]))
        codes.append(finish(process))
        assert_gone(process.pid)
        output = Path(f"{path}.txt").read_text()
        assert "Traceback" not in output, output
        if (path / "config.json").exists():
            argv = ["--resume", path, f"--workers={workers}"]
    return codes


@pytest.mark.parametrize(
    ("workers", "runs"),
    [(0, 3), (2, 1), pytest.param(0, 20, marks=pytest.mark.full), pytest.param(2, 20, marks=pytest.mark.full)],
)
def test_killed_runs_end_where_undisturbed_ones_end(folder, undisturbed, tmp_path, workers, runs):
    rng, kills = random.Random(workers), 0
    for index in range(runs):
        path = tmp_path / f"run{index}"
        codes = disturb(folder, path, workers, undisturbed[1], rng)
        assert set(codes) == {-signal.SIGKILL, 0}
        kills += len(codes) - 1
        assert_same_end(path, undisturbed[0])
        assert_clean(path)
    assert kills >= runs


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_runs_end_where_undisturbed_ones_end(folder, undisturbed, tmp_path, number, code, workers):
    path = tmp_path / "run"
    codes = disturb(folder, path, workers, undisturbed[1], random.Random(number), number)
    assert set(codes) == {code, 0}
    assert_same_end(path, undisturbed[0])
    assert_clean(path)
