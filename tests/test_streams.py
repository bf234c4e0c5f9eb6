"""Standard output that is closed, full or of another encoding costs no result, and no command its work."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest
from test_train_refusals import SMALL, make_set

from mae_dfer.__main__ import COMMANDS
from mae_dfer.__main__ import main as list_commands
from mae_dfer.cli import command
from mae_dfer.data.check import main as check
from mae_dfer.predict import main as predict
from mae_dfer.train import main as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    folder = make_set(root / "set")
    assert train(["--data", str(folder), "--output-dir", str(root / "run"), *SMALL]) == 0
    return folder, root / "run"


def closed():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w", encoding="utf-8")


def full():
    return open("/dev/full", "w", encoding="utf-8")


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


NOTE = "note: stdout cannot be written ({}); going on without it\n"
STREAMS = {
    "closed": (closed, 0, NOTE.format("Broken pipe")),
    "full": (full, 2, NOTE.format("No space left on device")),
    "ascii": (ascii_only, 0, ""),
    "none": (lambda: None, 0, ""),
}


@contextlib.contextmanager
def stdout(stream):
    with contextlib.redirect_stdout(stream):
        yield stream
    if stream is not None:
        stream.close()  # raises where text that cannot be written is left in it


@pytest.fixture(params=STREAMS)
def poor(request):
    """A poor stream, and the exit code and the stderr of a command that succeeds but for stdout."""
    if request.param == "full" and not os.path.exists("/dev/full"):
        pytest.skip("the system has no /dev/full")
    make, code, said = STREAMS[request.param]
    return make(), code, said


def test_predictions_are_written_whatever_becomes_of_the_table(trained, tmp_path, poor, capsys):
    stream, code, said = poor
    clip = trained[0] / "test0.png"
    options = ["--checkpoint", str(trained[1]), "--output", str(tmp_path / "out.csv"), "--device=cpu"]
    with stdout(stream):
        assert predict([str(clip), *options]) == code
        shown = stream.buffer.getvalue().decode("ascii") if said == "" and stream else ""
    assert (tmp_path / "out.csv").read_text().count(str(clip)) == 1
    assert capsys.readouterr().err == said
    assert not shown or ("+---" in shown and "0?0" in shown), "the table in characters that the stream has"


def test_training_goes_on_to_its_end(trained, tmp_path, poor, capsys):
    stream, code, said = poor
    with stdout(stream):
        assert train(["--data", str(trained[0]), "--output-dir", str(tmp_path / "run"), *SMALL]) == code
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["clips"] == 2
    assert capsys.readouterr().err == said


def test_the_report_is_written(tmp_path, poor):
    (tmp_path / "list.txt").write_text("gone.mp4\n")
    with stdout(poor[0]):
        assert check([str(tmp_path / "list.txt")]) == 1, "which says that a file cannot be read"
    assert "gone.mp4" in (tmp_path / "list.txt.broken.txt").read_text()


def test_only_a_reader_that_is_still_there_misses_the_last_lines(capsys):
    """``head`` has seen what it wanted; a file on a full disk is incomplete."""
    show = command(lambda argv: print("text") or 0)
    with stdout(closed()):
        assert show() == 0
    assert capsys.readouterr().err == ""
    with stdout(full()):
        assert show() == 2
    assert capsys.readouterr().err.endswith("(No space left on device); the end of it is missing\n")


def test_a_mistake_is_told_by_the_exit_code_where_stderr_is_closed():
    with closed() as stream, contextlib.redirect_stderr(stream):
        assert train(["--resume", "nowhere"]) == 2


def test_a_process_ends_without_a_traceback():
    """What Python flushes when it exits, too."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-m", "mae_dfer_kernels"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          env=environment, timeout=120)  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_listed_with_its_version_and_help(capsys, monkeypatch):
    assert list_commands([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        assert sum(f"python -m {name} " in line for line in lines) == 1
        package = name.rpartition(".")[2] in ("demo", "prepare", "mae_dfer_kernels")
        main = __import__(f"{name}.__main__" if package else name, fromlist=["main"]).main
        assert main(["--version"]) == 0 and capsys.readouterr().out == "mae_dfer 0.1.0\n"
        assert main(["--help"]) == 0 and f"python -m {name}" in capsys.readouterr().out
