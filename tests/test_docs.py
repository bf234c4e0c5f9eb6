"""The commands of docs/datasets.md, run as they are written, on miniature sets and with a model of miniature sizes."""

import json
import re
import shlex
from pathlib import Path

import official_trees as trees
import pytest
from test_train_refusals import SMALL

from mae_dfer import create_model
from mae_dfer.checkpoint import save_official
from mae_dfer.data.prepare.__main__ import main as prepare
from mae_dfer.train import main as train

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"
COMMANDS = {"mae_dfer.data.prepare": prepare, "mae_dfer.train": train}
SIZES = {
    "img_size": 32, "patch_size": 8, "num_frames": 4, "region_size": (1, 2, 4), "embed_dim": 16, "depth": 1,
    "num_heads": 1, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 1,
}  # fmt: skip


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line)[2:] for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_lead_from_a_set_to_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clips = trees.draw_dfew(tmp_path / "DFEW" / "DFEW-part2", form="clip_224x224") / "Clip"
    trees.draw_dfew_clip(clips, "clip_224x224_16f", 1, 1)
    trees.draw_crema_d(tmp_path / "CREMA-D")
    save_official(create_model("mae_lgi_former_base_patch16_160", **SIZES), "pretrained.pth")
    found = commands()
    assert len(found) == 5
    for module, *arguments in found:
        small = SMALL if "--data" in arguments else []
        assert COMMANDS[module]([*arguments, *small]) < 2, arguments  # 1: a miniature is not fit for training
    assert "not fit for training" in capsys.readouterr().out
    folds = json.loads(Path("runs/dfew/folds.json").read_text())
    assert len(folds["folds"]) == 5 and folds["mean_over_folds"]["war"] is not None
    one = json.loads(Path("runs/dfew-1/metrics.json").read_text())
    assert one["recipe"] == "dfew" and one["finetune_init"]["path"] == "pretrained.pth"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_between_pages_lead_somewhere(name):
    page = PAGE.parents[1] / name
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert links and not missing
