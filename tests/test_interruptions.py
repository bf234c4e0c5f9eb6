"""What signals do to a run in a process of its own, with decoding processes: how it ends, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_train_refusals import SMALL, make_set

from mae_dfer.data.loader import EpochSampler, _prepare_worker, make_loader
from mae_dfer.errors import UserError
from mae_dfer.signals import ended_by_signals
from mae_dfer.train import main as train
from mae_dfer.training.failures import explained

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds decoding processes in /proc")
ENDLESS = ["--stage=finetune", "--finetune-epochs=100000", "--workers=2"]


def wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def group_is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:  # it has ended meanwhile
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == process:
                found.append(int(folder.name))
    return found


def end(child: subprocess.Popen[str], how: str) -> None:
    if how == "worker":
        os.kill(children(child.pid)[0], signal.SIGKILL)
    elif how == "SIGINT":
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    else:
        child.send_signal(signal.Signals[how])


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("SIGTERM", 143, "terminated\n"),
        ("SIGINT", 130, "interrupted\n"),
        ("SIGKILL", -9, ""),
        ("worker", 2, "error: a decoding process died (DataLoader worker"),
    ],
)
def test_a_run_that_is_ended_leaves_its_checkpoints_and_no_process(
    how: str, code: int, words: str, tmp_path: Path
) -> None:
    folder, run = make_set(tmp_path / "set"), tmp_path / "run"
    command = [sys.executable, "-m", "mae_dfer.train", "--data", str(folder), "--output-dir", str(run)]
    child = subprocess.Popen(
        [*command, *SMALL, *ENDLESS], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        wait_for(lambda: (run / "checkpoints" / "finetune-epoch-0003.safetensors").exists())
        end(child, how)
        error = child.communicate(timeout=60)[1]
        assert child.returncode == code, error
        assert error.startswith(words) and error.count("\n") == words.count("\n") + ("error" in words), error
        wait_for(lambda: group_is_empty(child.pid), 30)
    finally:
        if not group_is_empty(child.pid):
            os.killpg(child.pid, signal.SIGKILL)
    newest = max(int(file.stem[-4:]) for file in (run / "checkpoints").glob("*.safetensors"))
    assert train(["--resume", str(run), f"--finetune-epochs={newest + 1}", "--workers=0"]) == 0
    assert not [file for file in run.rglob(".*")], "neither lock nor temporary file is left"
    events = [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert "resume" in events


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "a decoding process died"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. \nIt is possible", "a decoding process died"),
        ("unable to write to file </torch_7_1>: No space left on device (28)", "shared memory"),
    ],
)
def test_a_lost_decoding_process_is_told_in_one_line(message: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(UserError, match=words) as caught, explained(tmp_path):
        raise RuntimeError(message)
    assert "\n" not in str(caught.value) and f"--resume {tmp_path} goes on" in str(caught.value)
    with pytest.raises(RuntimeError, match="of our own"), explained(tmp_path):
        raise RuntimeError("a mistake of our own")




def test_a_decoding_process_prints_nothing_of_a_parent_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    threads = torch.get_num_threads()
    try:
        _prepare_worker(0)
    finally:
        torch.set_num_threads(threads)
    for error in (EOFError(), ConnectionResetError(), BrokenPipeError()):
        sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(KeyError, KeyError("a mistake of our own"), None)
    assert "a mistake of our own" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_an_interrupted_call_that_fails_otherwise_still_ends_by_the_signal(
    number: int, kind: type[BaseException]
) -> None:
    with pytest.raises(kind), ended_by_signals():
        try:
            os.kill(os.getpid(), number)
        except kind:
            raise RuntimeError("unexpected pos 46208") from None


class Clips:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: tuple[int, int]) -> dict[str, object]:
        return {"clip": torch.zeros(1), "label": 0, "index": item[1], "view": 0}


def test_a_signal_while_decoding_processes_start_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """What a handler raises within a fork, Python prints and drops."""
    armed: list[bool] = []
    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM) if armed else None)
    loader = make_loader(Clips(), EpochSampler(4, shuffle=False), 1, num_workers=2)
    with pytest.raises(SystemExit, match="143"), ended_by_signals():
        armed.append(True)
        try:
            list(loader)
        finally:
            armed.clear()
    assert capfd.readouterr().err == "terminated\n"


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_torch_is_imported_ends_the_command_in_one_line(number: int, code: int, words: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "mae_dfer.train", "--data=/nowhere", "--device=cpu"], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: "libtorch" in Path(f"/proc/{child.pid}/maps").read_text() or child.poll() is not None)
    child.send_signal(number)
    assert child.communicate(timeout=60)[1] == f"{words}\n" and child.returncode == code
