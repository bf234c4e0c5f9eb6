"""The benchmark of training steps: what it writes and what it refuses to time. Times themselves are never tested."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.exists():
    pytest.skip("needs the source tree", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import train_bench  # noqa: E402
from bench import loading, steps  # noqa: E402

from mae_dfer import create_model  # noqa: E402
from mae_dfer.data.video import open_video  # noqa: E402
from mae_dfer.models.layers import Mlp  # noqa: E402
from mae_dfer.models.residual import Residual  # noqa: E402


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LGI", "VIT"):
        monkeypatch.setattr(steps, name, getattr(steps, name).replace("base", "tiny"))


def test_json_holds_every_row_and_the_table_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert train_bench.main(["--quick", "--dtype", "float32", "--clips", "1", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["complete"] and content["loading"]["clips_per_second_a_core"] > 0
    rows = {(row["stage"], row["variant"]): row for row in content["rows"]}
    assert set(rows) == {(stage, name) for stage in steps.STAGES for name in ("eager", "fused", "vit-sdpa")}
    for row in rows.values():
        parts = [row[f"{part}_ms"] for part in steps.PARTS]
        assert row["clips"] == row["rounds"] == 1 and min(parts) > 0
        assert sum(parts) == pytest.approx(row["step_ms"]) == pytest.approx(1e3 / row["clips_per_second"])
        assert row["peak_bytes"] > 0
    shown = capsys.readouterr().out
    assert "1.09 M clips × 50 epochs" in " ".join(shown.split()) and "decoding apart" in " ".join(shown.split())


def test_a_fused_model_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = Mlp.of_stream

    def wrong(self: Mlp, stream: Residual, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        x, branch = fused(self, stream, norm)
        return x, branch * 1.3

    monkeypatch.setattr(Mlp, "of_stream", wrong)
    monkeypatch.setattr(train_bench, "measure", lambda *_: pytest.fail("it was timed"))
    assert train_bench.main(["--quick", "--stage", "finetune", "--dtype", "float32"]) == 2
    assert "fused finetune is wrong in float32" in capsys.readouterr().err


@pytest.mark.parametrize(("factor", "expected"), [(1.0, ["fused", "fused-graph"]), (1.5, ["fused"])])
def test_graphs_that_compute_something_else_are_left_out(
    factor: float, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pretended(nn.Module):
        def __init__(self, model: nn.Module, sample: tuple[Tensor, ...], autocast: object) -> None:
            super().__init__()
            self.model, self.inputs = model, len(sample)

        def forward(self, *arguments: Tensor) -> Tensor:
            assert len(arguments) == self.inputs == 2
            return self.model(*arguments) * factor

    monkeypatch.setattr(steps, "GraphedModel", Pretended)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    batch = steps.draw_batch("pretrain", torch.device("cpu"), 1)
    models = {name: steps.draw_weights(create_model(f"mae_{steps.LGI}")) for name in ("fused", "fused-graph")}
    made = [steps.TrainingStep(name, "pretrain", model, batch, "float32") for name, model in models.items()]
    assert [row.variant for row in train_bench.measure(made, 1)] == expected
    assert ("fused-graph pretrain is wrong in float32" in " ".join(capsys.readouterr().out.split())) == (factor != 1.0)


def test_its_video_is_of_the_size_and_length_it_says(tmp_path: Path) -> None:
    with open_video(loading.write_video(tmp_path)) as video:
        assert video.num_frames == loading.FRAMES
        assert video.get([0, 199]).shape == (2, loading.SIDE, loading.SIDE, 3)


@pytest.mark.parametrize(("argument", "words"), [("--clips=0", "at least 1"), ("--stage=tune", "invalid choice")])
def test_mistakes_end_in_one_line(argument: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_bench.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_days() -> None:
    assert train_bench.days(3600) == "1.0 hours" and train_bench.days(86400 * 5) == "5.0 days"
