"""The benchmark of attention: what it writes, and that it times nothing wrong. Times themselves are never tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import attn_bench  # noqa: E402
from bench import blocks, clock, encoders, facts, measure, ops, variants  # noqa: E402

from mae_dfer import create_model  # noqa: E402
from mae_dfer.models.layers import Attention  # noqa: E402
from mae_dfer_kernels import backends, region_attention  # noqa: E402

CPU = torch.device("cpu")
QUICK = ["--quick", "--level", "op", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small here, and what is tested is not how fast they are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One region size, and fewer tokens."""
    regions = {101: (2, 80)}
    monkeypatch.setattr(ops, "REGIONS", regions)
    monkeypatch.setattr(attn_bench, "REGIONS", regions)
    yield


def test_json_holds_every_row_and_field(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert attn_bench.main([*QUICK, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["complete"] and "forward + backward" in content["fields"]["backward_ms"]
    assert {"torch", "threads", "device_name", "instruction_set", "commit"} <= set(content["environment"])

    rows: dict[tuple[str, str], dict[str, Any]] = {(row["op"], row["variant"]): row for row in content["rows"]}
    assert set(rows) == {
        ("region_attention", "eager"), ("region_attention", "sdpa"), ("region_attention", "fused-cpu"),
        ("vit_attention", "vit-sdpa-12-heads"), ("vit_attention", "vit-sdpa-8-heads"),
        ("exchange", "eager"), ("exchange", "sdpa"), ("exchange", "fused-cpu"),
        ("residual_layer_norm", "eager"), ("residual_layer_norm", "fused-cpu"),
    }  # fmt: skip
    for row in rows.values():
        assert row["level"] == "op" and row["dtype"] == "float32" and all(size > 0 for size in row["shape"])
        assert min(row["forward_ms"], row["backward_ms"], row["peak_bytes"]) > 0
        assert min(row["forward_iqr_ms"], row["backward_iqr_ms"]) >= 0
        assert row["forward_wall_ms"] == row["forward_ms"] and not row["captured"], "a CPU has one clock"
    # Two clips of two regions: two matmuls of S·S·D for each of 8 heads; SDPA's kernel is counted too.
    macs = 2 * 4 * 101 * 101 * 8 * 64
    assert all(rows["region_attention", name]["macs"] == macs for name in ("eager", "sdpa", "fused-cpu"))
    assert rows["vit_attention", "vit-sdpa-12-heads"]["macs"] == 2 * 2 * 80 * 80 * 12 * 64
    assert rows["exchange", "fused-cpu"]["macs"] < rows["exchange", "eager"]["macs"]
    assert {entry["variant"] for entry in content["left_out"]} >= {"compile", "fused-cuda"}

    shown = capsys.readouterr()
    assert "fused-cpu" in shown.out and "left out" in shown.out
    assert "[1/3]" in shown.err, "progress goes to stderr"


def test_whole_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LGI", "VIT"):
        monkeypatch.setattr(encoders, name, getattr(encoders, name).replace("base", "tiny"))
    file = tmp_path / "rows.json"
    assert attn_bench.main(["--quick", "--level", "encoder", "--dtype", "float32", "--json", str(file)]) == 0
    rows = {(row["op"], row["variant"]): row for row in json.loads(file.read_text())["rows"]}
    ours = [("lgi_former_tiny", name) for name in ("eager", "sdpa", "fused-cpu")]
    assert set(rows) == {*ours, ("vit_tiny", "vit-sdpa")}
    assert all(row["level"] == "encoder" and row["shape"] == [1, 3, 16, 160, 160] for row in rows.values())
    assert rows[ours[0]]["macs"] == rows[ours[1]]["macs"] >= rows[ours[2]]["macs"] > 0


def test_growth_is_measured_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = [blocks.Size(frames, 32, (2, 1, 2)) for frames in (4, 8)]
    for module in (blocks, attn_bench):
        monkeypatch.setattr(module, "LONGER", sizes)
        monkeypatch.setattr(module, "LARGER", sizes[:1])
    monkeypatch.setattr(attn_bench, "PAPER", sizes[0])
    picture, file = tmp_path / "growth.png", tmp_path / "rows.json"
    arguments = ["--quick", "--level", "block", "--dtype", "float32", "--plot", str(picture), "--json", str(file)]
    assert attn_bench.main(arguments) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["shape"] for row in rows if row["level"] == "sweep" and row["variant"] == "fused-cpu"] == [
        [1, 2, 5, 512], [1, 4, 5, 512], [1, 2, 5, 512]
    ]  # fmt: skip
    variants_of_block = {row["variant"] for row in rows if row["level"] == "block"}
    assert variants_of_block == {"eager", "sdpa", "fused-cpu", "vit-sdpa", "vit-fused"}
    height, width, _ = matplotlib.image.imread(picture).shape
    assert height > 1000 and width > 1500
    assert attn_bench.main([*arguments[:-4], "--plot", str(tmp_path / "growth.txt")]) == 2


def wrong_output(qkv: Tensor, heads: int, **options: Any) -> Tensor:
    return region_attention(qkv, heads, **options) * 1.001


def wrong_gradient(qkv: Tensor, heads: int, **options: Any) -> Tensor:
    out = region_attention(qkv, heads, **options)
    return (out + out.detach()) / 2


@pytest.mark.parametrize("operator", [wrong_output, wrong_gradient])
def test_a_wrong_operator_of_ours_stops_the_program_before_it_is_timed(
    operator: Any, small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "region_attention", operator)
    monkeypatch.setattr(attn_bench, "measure", lambda *_, **__: pytest.fail("it was timed"))
    assert attn_bench.main([*QUICK, "--json", str(tmp_path / "rows.json")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: fused-cpu of region_attention is wrong") and "allowed" in error, error
    assert not list(tmp_path.iterdir())


def double(x: Tensor) -> Tensor:
    return (x * 2).exp()


def problem_of(call: Any, x: Tensor) -> variants.Problem:
    inputs = variants.Inputs((x.requires_grad_(),), (torch.ones_like(x),))
    wide = variants.Inputs((x.detach().double().requires_grad_(),), (torch.ones_like(x).double(),))
    exact = variants.Variant("exact", variants.Problem("double", [*x.shape], "float64", [wide], list, call), call)
    return variants.Problem("double", [*x.shape], "float32", [inputs], exact.both, call)


def test_what_torch_cannot_run_or_gets_wrong_is_left_out_with_its_reason() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no compiler\nfound")

    def rough(x: Tensor) -> Tensor:
        return double(x) * (1 + 2e-7)

    def wrong_alone(x: Tensor) -> Tensor:
        return double(x) * (1.0 if torch.is_grad_enabled() else 1.1)

    problem = problem_of(double, torch.linspace(-2.0, 2.0, 64))
    calls = {"eager": double, "compile-eager": broken, "sdpa": lambda x: double(x) * 1.1, "compile-sdpa": rough,
             "vit-sdpa": wrong_alone, "fused-cpu": double}  # fmt: skip
    case = variants.Case("op", "double", [variants.Variant(name, problem, call) for name, call in calls.items()])
    measure.check(case, CPU)
    assert [variant.name for variant in case.variants] == ["eager", "compile-sdpa", "fused-cpu"]
    reasons = {entry.variant: entry.reason for entry in case.left_out}
    assert "no compiler found" in reasons["compile-eager"]
    assert "allowed" in reasons["sdpa"] and "allowed" in reasons["vit-sdpa"]
    assert len(case.notes) == 1 and case.notes[0].startswith("compile-sdpa of double")


def test_memory_is_the_peak_of_forward_and_backward() -> None:
    x = torch.randn(1000, 1000)
    variant = variants.Variant("eager", problem_of(double, x), double)
    variant.both()
    # At the peak: exp's result, its gradient times that, and x's gradient.
    size = x.numel() * x.element_size()
    assert 3 * size <= measure.peak_bytes(variant.both, CPU) < 3.01 * size


def test_the_sdpa_model_is_the_eager_one_with_other_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = encoders.draw_weights(create_model("lgi_former_tiny_patch16_160", fused_attn=False)).eval()
    sdpa, clip = encoders.with_sdpa(eager), torch.randn(1, 3, 16, 160, 160)
    calls: list[Tensor] = []
    monkeypatch.setattr(encoders, "attend_sdpa", lambda *qkv: calls.append(qkv[0]) or variants.attend_sdpa(*qkv))
    with torch.no_grad():
        torch.testing.assert_close(sdpa(clip), eager(clip), rtol=1e-4, atol=1e-5)
    assert len(calls) == sum(isinstance(module, Attention) for module in eager.modules()) == 12
    for one, other in zip(eager.parameters(), sdpa.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr() and one is not other and other.requires_grad


def test_a_model_can_be_put_on_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, run, used = torch.randn(2, 5, 3 * 16), backends.run, []
    monkeypatch.setattr(backends, "run", lambda *given: used.append(given[2]) or run(*given))
    with variants.auto_is("eager"):
        region_attention(qkv, 1)
        assert used == ["eager"], "the public operator lets itself be told"
    with variants.auto_is("eager"):
        assert backends.choose("region_attention", "auto", qkv, 1) == "eager"
        assert backends.choose("region_attention", "cpu", qkv, 1) == "cpu"
    with variants.auto_is("cuda"):
        assert backends.choose("region_attention", "auto", qkv, 1) == "cpu", "cuda cannot run this"


class PretendedGpu:
    """As much of ``torch.cuda`` as a clock takes: a kernel is what ``launch`` counts, and lasts a millisecond."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
        self.launched: list[int] = []
        self.kernels, self.capturing, self.refuses = 0, False, refuses
        same: dict[str, Any] = {
            "Stream": object, "stream": nullcontext, "device": nullcontext, "graph_pool_handle": object,
            "synchronize": lambda: None, "_sleep": lambda cycles: None, "CUDAGraph": lambda: PretendedGraph(self),
            "graph": self.graph, "Event": lambda enable_timing: PretendedEvent(self),
        }  # fmt: skip
        for name, value in same.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextmanager
    def graph(self, graph: PretendedGraph, pool: object, stream: object) -> Iterator[None]:
        before, self.capturing = self.kernels, True
        try:
            yield
        finally:
            self.capturing = False
        graph.kernels, self.kernels = self.kernels - before, before

    def launch(self, turn: int) -> None:
        if self.capturing and self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.launched.append(turn)
        self.kernels += 1


@dataclass
class PretendedGraph:
    gpu: PretendedGpu
    kernels: int = 0

    def replay(self) -> None:
        self.gpu.kernels += self.kernels


@dataclass
class PretendedEvent:
    gpu: PretendedGpu
    at: int = 0

    def record(self) -> None:
        self.at = self.gpu.kernels

    def elapsed_time(self, end: PretendedEvent) -> float:
        return float(end.at - self.at)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_gpu_is_timed_by_replays_or_by_launches_where_a_capture_fails(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = PretendedGpu(monkeypatch, refuses)
    timer = clock.GpuClock(gpu.launch, 3, clock.Recorder())
    assert timer.captured is not refuses
    gpu.launched.clear()
    for _ in range(2):
        assert timer.time().device == 1.0, "of one call"
    # Two rounds: what is replayed is not launched, but for the wall time; else each call has its own inputs.
    assert gpu.launched == ([0, 1, 2, 0, 0, 1, 2, 0] if refuses else [0, 0])


def test_rows_of_a_gpu_say_whether_they_were_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendedGpu(monkeypatch, refuses=False)
    monkeypatch.setattr(clock.Recorder, "capture", lambda recorder, call, repeats: None)
    monkeypatch.setattr(clock, "MAX_REPEATS", 1)
    variant = variants.Variant("eager", problem_of(double, torch.ones(4)), double)
    times = measure.measure(
        [variant], torch.device("cuda"), rounds=2, least=1, seconds=9.0, warm=False, tick=lambda: None
    )
    row = attn_bench.make_row("block", variant, 1, 1, times[0])
    assert not row.captured and row.rounds == 2 and row.backward_wall_ms > 0
    assert attn_bench.timed([row], row, "forward", walls=True)[1] == f"{row.forward_wall_ms:.1f}"


def test_ratios_compare_ours_with_the_best_of_the_same_computation() -> None:
    def row(variant: str, time: float) -> attn_bench.Row:
        return attn_bench.Row("op", "op", variant, [1], "float32", 1, time, 0.0, time, 0.0, time, time, False, 1, 1)

    times = {"eager": 6.0, "sdpa": 4.0, "fused-cpu": 2.0, "vit-sdpa": 1.0, "vit-fused": 0.5}
    group = [row(*item) for item in times.items()]
    found = [attn_bench.compare(group, r, "forward_ms") for r in group]
    assert found == ["3.00×", "2.00×", "2.00×", "0.50×", "0.25×"]
    assert attn_bench.compare(group[:2], group[0], "forward_ms") == ""


def test_a_tree_without_git_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "tree").mkdir()
    assert facts.commit(tmp_path / "tree") is None, "that of another repository around it is not its own"
    assert facts.commit(tmp_path) is None, "a folder that git cannot read"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--levl", "op"], "did you mean --level"),
        (["--dtype", "int8"], "invalid choice"),
        (["--device", "gpu"], "--device gpu"),
        (["--json", "."], "is a folder"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert attn_bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error
