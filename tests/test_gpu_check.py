"""The parts of gpu_check that need no GPU: budgets, reports, and how other programs' output is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import gpu_check  # noqa: E402
from bench import gpu_report, sanitizer, small_cases, stages  # noqa: E402
from bench.ceilings import ceilings  # noqa: E402
from bench.stages import FAILED, NOT_RUN, OUT_OF_TIME, PASSED, Outcome, Stage  # noqa: E402


def test_without_a_gpu_it_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "NVIDIA GPU" in error
    assert not list(tmp_path.iterdir())


def test_a_command_out_of_time_is_stopped_with_its_children(tmp_path: Path) -> None:
    finished = stages.run_command(["bash", "-c", "sleep 60 & echo $!; wait"], 0.5, directory=tmp_path)
    assert finished.code is None and finished.seconds < 10
    child = int(finished.output)
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split(")")[-1].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child of the stopped command still runs")
    assert stages.judge(finished, "").status == OUT_OF_TIME


def test_a_command_that_ends_is_judged_by_its_exit_code(tmp_path: Path) -> None:
    finished = stages.run_command(["bash", "-c", "echo $WORD; pwd"], 30, directory=tmp_path, variables={"WORD": "said"})
    assert finished.code == 0 and finished.output.split() == ["said", str(tmp_path)]
    assert stages.judge(finished, "done", rate=3.0) == Outcome(PASSED, "done", finished.output, {"rate": 3.0})
    failed = stages.judge(stages.run_command(["bash", "-c", "echo why; exit 3"], 30, directory=tmp_path), "done")
    assert (failed.status, failed.detail) == (FAILED, "exit code 3: why")


def test_stages_go_on_after_one_that_fails_or_takes_too_long(tmp_path: Path) -> None:
    allowed: dict[str, float] = {}

    def sleep(seconds: float) -> Outcome:
        return stages.judge(stages.run_command(["sleep", "60"], min(seconds, 0.2), directory=tmp_path), "")

    def crash(seconds: float) -> Outcome:
        raise ValueError("a bug")

    def note(seconds: float) -> Outcome:
        allowed["note"] = seconds
        return Outcome(PASSED, "")

    seen: list[int] = []
    outcomes = stages.run_stages(
        [Stage("sleep", 10, sleep), Stage("crash", 10, crash), Stage("note", 10, note)],
        30, after=lambda found: seen.append(len(found)), before=lambda name: None,
    )  # fmt: skip
    assert [(o.name, o.status) for o in outcomes] == [("sleep", OUT_OF_TIME), ("crash", FAILED), ("note", PASSED)]
    assert outcomes[1].detail == "ValueError: a bug" and seen == [1, 2, 3]
    assert 20 < allowed["note"] <= 30, "what the stages before it left is the last one's"


def test_a_stage_without_time_left_is_not_started() -> None:
    outcomes = stages.run_stages(
        [Stage("late", 10, lambda seconds: pytest.fail("it ran"))], 0.5, after=lambda _: None, before=lambda _: None
    )
    assert [(o.status, o.detail) for o in outcomes] == [(OUT_OF_TIME, "no time was left to start it")]


def test_the_budgets_fit_into_eight_minutes() -> None:
    assert sum(stage.budget_s for stage in gpu_check.stages()) <= gpu_check.TOTAL_S < 480


CLEAN = "triton region_attention\n20 cases ran\n========= ERROR SUMMARY: 0 errors\n"
RACES = "20 cases ran\n========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (CLEAN, (0, 0, None)),
        ("========= ERROR SUMMARY: 1 error\n", (1, 0, None)),
        ("========= ERROR SUMMARY: 2 errors\n========= ERROR SUMMARY: 3 errors\n", (5, 0, None)),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", (0, 0, None)),
        (RACES, (2, 1, None)),
        ("========= COMPUTE-SANITIZER\n========= Error: Device not supported\n", (0, 0, "Error: Device not supported")),
        ("Segmentation fault\n", (0, 0, "the tool printed no summary")),
    ],
)
def test_reports_of_compute_sanitizer(output: str, expected: tuple[int, int, str | None]) -> None:
    assert sanitizer.parse_report(output) == expected


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (PASSED, CLEAN, PASSED),
        (PASSED, CLEAN.replace("20 cases", "0 cases"), FAILED),
        (PASSED, "========= ERROR SUMMARY: 4 errors\n20 cases ran\n", FAILED),
        (PASSED, RACES, FAILED),
        (FAILED, CLEAN, FAILED),
        (FAILED, "========= Error: Device not supported\n", NOT_RUN),
        (OUT_OF_TIME, "", OUT_OF_TIME),
    ],
)
def test_verdict_of_a_checker(status: str, output: str, expected: str) -> None:
    assert gpu_check.judge_sanitizer(Outcome(status, "", output)).status == expected


def test_without_compute_sanitizer_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find_tool", lambda: None)
    outcome = gpu_check.sanitize("memcheck", 1.0)
    assert outcome.status == NOT_RUN and "not installed" in outcome.detail


def test_tests_that_used_no_gpu_do_not_pass() -> None:
    counts = {"passed": 9, "failed": 0, "skipped": 1, "used_gpu": 4}
    right = gpu_check.judge_tests(Outcome(PASSED, ""), counts)
    assert (right.status, right.detail) == (PASSED, "9 passed, 0 failed, 1 skipped; 4 used the GPU")
    assert gpu_check.judge_tests(Outcome(PASSED, ""), counts | {"used_gpu": 0}).status == FAILED
    assert gpu_check.judge_tests(Outcome(PASSED, ""), {}).status == FAILED


def test_the_plugin_counts_tests_that_allocated_on_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\nfrom bench import gpu_plugin\n"
        "count = 0\ngpu_plugin.allocations = lambda: count\n"
        "@pytest.fixture\ndef tensor():\n    global count\n    count += 1\n"
    )
    (tmp_path / "test_sample.py").write_text(
        "import pytest\n"
        "def test_by_fixture(tensor): pass\n"
        "def test_without(): pass\n"
        "@pytest.mark.skip\ndef test_skipped(tensor): pass\n"
        "def test_wrong(tensor): assert False\n"
    )
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "bench.gpu_plugin"]
    run = subprocess.run(
        [*command, "--gpu-report", report], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert json.loads(report.read_text()) == {
        "passed": 2, "failed": 1, "skipped": 1, "used_gpu": 2, "failures": ["test_sample.py::test_wrong"],
    }  # fmt: skip


def test_the_selection_finds_gpu_tests() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", gpu_check.GPU_TESTS]
    command += ["tests/test_triton_region_attention.py", "tests/test_layers.py"]
    run = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False)
    found = run.stdout.splitlines()
    assert any("::test_error_against_float64[" in line for line in found), run.stdout + run.stderr
    assert not any("interpreter" in line or "test_layers" in line for line in found)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("Tesla (T4) / a", "tesla-t4-a"), ("…", "unknown")],
)
def test_device_names_become_file_names(name: str, expected: str) -> None:
    assert gpu_report.slug(name) == expected


def row(**changes: Any) -> dict[str, Any]:
    """A made-up row: no measurement."""
    return {
        "level": "op", "op": "region_attention", "variant": "fused-triton", "shape": [2, 10, 1, 16],
        "dtype": "bfloat16", "macs": 6400, "forward_ms": 1.0, "forward_iqr_ms": 0.5, "backward_ms": 2.0,
        "backward_iqr_ms": 0.5, "peak_bytes": 1_000_000, "rounds": 3,
    } | changes  # fmt: skip


def recorded(**figures: dict[str, Any]) -> dict[str, Any]:
    environment = {"date": "2000-01-02", "device_name": "Made-up GPU", "commit": None, "torch": "9.9", "triton": "8.8"}
    found = [Outcome(PASSED, "fine", "noise", values, name.replace("__", " "), 3.0) for name, values in figures.items()]
    found.append(Outcome(FAILED, "exit | code 1", "x" * 9000 + "the end", {}, "build", 1.0))
    return {"environment": environment, "stages": [outcome.to_dict() for outcome in found]}


def test_results_are_written_as_json_and_markdown(tmp_path: Path) -> None:
    results = recorded(
        ceilings={"copy_bytes_per_s": 2.56e6, "matmul_bfloat16_flops_per_s": 3e12},
        attn_bench__op={
            "rows": [row(), row(variant="eager"), row(op="exchange")],
            "left_out": [{"variant": "sdpa", "op": "exchange", "reason": "why", "dtype": name} for name in "ab"],
            "notes": ["eager rounds"],
        },
    )
    files = gpu_report.write_results(tmp_path / "new", results)
    assert [file.name for file in files] == ["2000-01-02-made-up-gpu.json", "2000-01-02-made-up-gpu.md"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(file.name for file in files)
    assert json.loads(files[0].read_text()) == results
    text = files[1].read_text()
    assert "torch 9.9" in text and "commit" not in text
    assert "| matrix product, bfloat16 | 3.0 TFLOP/s |" in text
    # 2·10 tokens of 16 channels in 2 bytes, 4 times in a millisecond, of 2.56 MB/s; 11 times in two.
    assert "| **fused-triton** | 0.000 | 1.0000 ± 0.2500 | 100% | 2.0000 ± 0.2500 | 138% | 1.0 |" in text
    assert text.count("%") == 2, "shares are of region attention by ours alone"
    assert text.count("- left out: sdpa, exchange: why\n") == 1 and "- eager rounds\n" in text
    assert "exit \\| code 1" in text and "the end" in text and "noise" not in text
    assert len(text) < 7000, "of a long output the end is kept"


def test_what_was_not_measured_says_so_and_nothing_else() -> None:
    text = gpu_report.markdown(recorded())
    for heading in ("## Ceilings", "## Attention", "## Training"):
        assert f"{heading}\n\nnot measured\n\n" in text


def test_every_operator_has_small_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert small_cases.main(["--backends", "cpu", "eager"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "44 cases ran" and not any(line.startswith("left out") for line in lines)
    for operator in ("region_attention", "residual_layer_norm", "layer_norm", "exchange"):
        assert any(line.startswith(f"cpu {operator}") for line in lines)


def test_ceilings() -> None:
    found = ceilings(torch.device("cpu"), copy_bytes=1000, size=8, repeats=1)
    assert set(found) == {"copy_bytes_per_s", "matmul_bfloat16_flops_per_s", "matmul_float32_flops_per_s"}
    assert min(found.values()) > 0 and torch.get_float32_matmul_precision() == "highest"
