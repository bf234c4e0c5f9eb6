"""The benchmark of video decoders: which it calls right, and what it writes. Times themselves are never tested."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import decode_bench  # noqa: E402
from bench import decode_checks, videos  # noqa: E402
from bench.decode_checks import Reference, judge  # noqa: E402
from bench.decoder_process import DecoderProcess, Place  # noqa: E402

# Code in a made-up package decord2, which otherwise reads the file right by PyAV, and the verdict that it earns.
FAULTS = {
    "right": "",
    "wrong frames": "indices = [max(index, 1) - 1 for index in indices]",
    "wrong count": "indices = list(indices)[:-1]",
    "refused": "raise RuntimeError('cannot seek')",
    "crashes": "import os; os._exit(3)",
    "hangs": "import time; time.sleep(60)",
}
DECORD2 = """
import av, numpy as np
__version__ = "9.9"

class Batch:
    def __init__(self, frames): self.frames = frames
    def asnumpy(self): return self.frames

class VideoReader:
    def __init__(self, path, num_threads):
        with av.open(path) as container:
            self.frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        self.at = 0
    def __len__(self): return len(self.frames)
    def next(self):
        self.at += 1
        return Batch(self.frames[self.at - 1])
    def get_batch(self, indices):
        print("libraries print to standard output")
        FAULT
        return Batch(np.stack([self.frames[index] for index in indices]))
"""


def install(folder: Path, fault: str) -> Path:
    """Writes that package as pip install --target does."""
    (folder / "decord").mkdir(parents=True)
    (folder / "decord" / "__init__.py").write_text(DECORD2.replace("FAULT", fault))
    (folder / "decord2-9.9.dist-info").mkdir()
    (folder / "decord2-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: decord2\nVersion: 9.9\n")
    return folder


@pytest.fixture
def core() -> Iterator[None]:
    """Gives later tests all cores again: the benchmark keeps its process to one."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.write(tmp_path_factory.mktemp("v") / "v.mp4", videos.scene(64, 48, 70), options={"g": "25"})


@pytest.mark.parametrize("expected", FAULTS)
def test_a_decoder_is_judged_by_what_it_gives(expected: str, video: Path, tmp_path: Path) -> None:
    reference = Reference.write(video, tmp_path / "reference.npy")
    process = DecoderProcess("decord2", Place(folders=(str(install(tmp_path / "package", FAULTS[expected])),)))
    try:
        verdict = judge(process, video, reference, 2.0 if expected == "hangs" else 30.0)
    finally:
        process.close()
    assert verdict.status == expected, verdict
    if expected == "wrong frames":
        assert "for frame 4 came frame 3" in verdict.detail


@pytest.mark.usefixtures("core")
def test_what_is_wrong_is_not_timed_and_what_is_missing_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, package = tmp_path / "rows.json", install(tmp_path / "package", FAULTS["wrong frames"])
    arguments = ["--decoders", "pyav", "pyav-skip", "decord2", "torchcodec", "--part", "times", "--sizes", "64x48"]
    places = [f"--path=decord2={package}", f"--path=torchcodec={install_broken(tmp_path / 'broken')}"]
    assert decode_bench.main([*arguments, *places, "--quick", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    rows = {(row["video"], row["request"], row["decoder"]): row for row in content["rows"]}
    titles = [f"64 × 48, key frames every {gop}" for gop in (250, 12)]
    expected = {
        (title, *which) for title in titles for which in (("clip", "pyav"), ("clip", "pyav-skip"), ("whole", "pyav"))
    }
    assert set(rows) == expected and content["complete"]
    for (_, request, name), row in rows.items():
        assert row["rounds"] == 2 and row["max_difference"] == 0 and min(row["ms"], row["cpu_ms"], row["ratio"]) > 0
        frames = decode_checks.CLIP if request == "clip" else decode_bench.FRAMES
        assert row["frames_per_second"] == pytest.approx(frames / row["ms"] * 1e3)
        assert name != "pyav" or row["ratio"] == 1.0
    assert content["decoders"]["pyav"]["version"] == av.__version__ and "torchcodec" not in content["decoders"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "left out: decord2: 64 × 48, key frames every 250: wrong frames: 15 of 16; for frame 4 came frame 3" in shown
    assert "left out: torchcodec: not installed, or does not start: ImportError: no FFmpeg here" in shown


def install_broken(folder: Path) -> Path:
    (folder / "torchcodec").mkdir(parents=True)
    (folder / "torchcodec" / "__init__.py").write_text("raise ImportError('no FFmpeg here')")
    return folder


@pytest.fixture(scope="module")
def difficult(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    return videos.difficult_files(tmp_path_factory.mktemp("difficult"))


@pytest.mark.parametrize("name", ["pyav", "pyav-skip"])
def test_pyav_reads_every_difficult_file_right(name: str, difficult: dict[str, Path | str], tmp_path: Path) -> None:
    process = DecoderProcess(name, Place())
    try:
        for what, path in difficult.items():
            if isinstance(path, Path):
                reference = Reference.write(path, tmp_path / "reference.npy")
                assert judge(process, path, reference, 30.0) == ("right", "", 0, 0.0), what
    finally:
        process.close()


def test_difficult_files_are_what_they_say(difficult: dict[str, Path | str]) -> None:
    packets, frames, ratios = {}, {}, {}
    for name, path in difficult.items():
        if isinstance(path, Path):
            assert decode_checks.confirm(path) is not False, name
            with av.open(str(path)) as container:
                packets[name] = [packet for packet in container.demux(video=0) if packet.size]
                ratios[name] = container.streams.video[0].sample_aspect_ratio
            with av.open(str(path)) as container:
                frames[name] = list(container.decode(video=0))
    for name in set(difficult) - set(frames):  # an older PyAV lacks what this takes, and not every machine has the tool
        assert name == "VP8, hidden frames" or int(av.__version__.split(".")[0]) < 18, difficult[name]
    counts = {name: (len(packets[name]), len(frames[name])) for name in frames}
    # From the key frame 25 on, shown from frame 33 on.
    assert counts.get("edit list (cut by -c copy)", (75, 67)) == (75, 67)
    facts: dict[str, Callable[[str], bool]] = {
        "variable frame rate": lambda name: len(set(np.diff([frame.pts for frame in frames[name]]))) > 20,
        "H.264, open GOPs": lambda name: shows_before_its_key_frame(packets[name]),
        "HEVC, open GOPs": lambda name: shows_before_its_key_frame(packets[name]),
        "HEVC, closed GOPs": lambda name: not shows_before_its_key_frame(packets[name]),
        "VP8, hidden frames": lambda name: counts[name][0] > counts[name][1] == videos.LENGTH,
        "first packet no key frame": lambda name: not packets[name][0].is_keyframe,
        "rotated by a phone": lambda name: abs(frames[name][0].rotation) == 90,
        "non-square pixels": lambda name: ratios[name] == Fraction(4, 3),
    }
    assert set(facts) <= set(difficult)
    for name, holds in facts.items():
        assert name not in frames or holds(name), name


@pytest.mark.usefixtures("core")
def test_verdicts_are_shown_and_written(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decode_bench, "difficult_files", lambda folder: {"easy": video, "VP8": "needs ffmpeg"})
    file, package = tmp_path / "verdicts.json", install(tmp_path / "package", FAULTS["wrong count"])
    arguments = ["--decoders", "pyav", "decord2", f"--path=decord2={package}", "--part", "difficult"]
    assert decode_bench.main([*arguments, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    statuses = {name: verdict["status"] for name, verdict in content["verdicts"]["easy"].items()}
    assert statuses == {"pyav": "right", "decord2": "wrong count"} and content["rows"] == []
    assert content["left_out"] == [{"what": "VP8", "reason": "needs ffmpeg"}]
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "easy right wrong count" in shown and "left out: VP8: needs ffmpeg" in shown


def shows_before_its_key_frame(packets: list[av.Packet]) -> bool:
    """Whether frames that follow a key frame in the file are shown before it."""
    key = max(index for index, packet in enumerate(packets) if packet.is_keyframe)
    return any(packet.pts < packets[key].pts for packet in packets[key + 1 :])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--path", "ffmpeg=/tmp"], "NAME one of pyav"),
        (["--python", "decord2=/no/such/python"], "there is no /no/such/python"),
        (["--sizes", "224"], "write WIDTHxHEIGHT"),
        (["--sizes", "224x225"], "write WIDTHxHEIGHT"),
        (["--core", "4096"], "this process may use" if sys.platform == "linux" else "Linux"),
        (["--decoders", "opencv"], "invalid choice"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert decode_bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
