"""What metrics.json says of where a score comes from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_refusals import SMALL, make_set

from mae_dfer import __version__
from mae_dfer.data.lists import Sample, hash_samples
from mae_dfer.train import main as train
from mae_dfer.training.checkpoints import hash_file
from mae_dfer.training.provenance import describe_decoder, find_commit


def origin(path: Path) -> dict[str, Any]:
    return json.loads((path / "metrics.json").read_text())["provenance"]


def test_a_score_says_where_it_comes_from(tmp_path: Path) -> None:
    folder, path = make_set(tmp_path / "set"), tmp_path / "run"
    (folder / "dataset.json").write_text(json.dumps({"set": "toy", "clips": "small", "stride": 2}))
    assert train(["--data", str(folder), "--output-dir", str(path), *SMALL, "--seed=5", "--amp=off"]) == 0
    found = origin(path)
    weights = path / "checkpoints" / "finetune-epoch-0001.safetensors"
    first = path / "checkpoints" / "pretrain-epoch-0001.safetensors"
    assert found["checkpoint"] == {"path": str(weights), "sha256": hash_file(weights)}
    assert found["init"] == {"path": str(first), "sha256": hash_file(first)}
    assert (found["data"]["set"], found["data"]["clips"], found["data"]["fold"]) == ("toy", "small", None)
    files = {name: one["files"] for name, one in found["data"]["lists"].items()}
    assert files == {"pretrain": 4, "train": 4, "test": 2}
    assert found["views"] == {"segments": 1, "crops": 1, "frames": 4, "stride": 2, "size": [32, 32]}
    assert found["versions"]["mae_dfer"] == __version__ and found["versions"]["torch"] == torch.__version__
    assert {"torchvision", "timm", "numpy", "av", "python"} <= found["versions"].keys()
    assert found["decoder"]["name"] == "pyav" and found["decoder"]["version"] == found["versions"]["av"]
    assert (found["seed"], found["protocol"], found["amp"], found["processes"]) == (5, "corrected", "off", 1)
    assert found["device"] and found["platform"] and found["attention_backend"] and "commit" in found

    score = ["--data", str(folder), "--stage=evaluate", "--init-from", str(path), *SMALL, "--num-segments=2"]
    assert train([*score, "--output-dir", str(tmp_path / "score")]) == 0
    again = origin(tmp_path / "score")
    assert again["checkpoint"] == found["checkpoint"] and again["init"] == found["init"]
    assert list(again["data"]["lists"]) == ["test"] and again["views"]["segments"] == 2
    assert again["trained_on"]["lists"]["train"] == found["data"]["lists"]["train"]

    assert train(["--data", str(folder), "--stage=pretrain", *SMALL, "--output-dir", str(tmp_path / "alone")]) == 0
    alone = origin(tmp_path / "alone")
    assert list(alone["data"]["lists"]) == ["pretrain"] and "views" not in alone and alone["init"] is None
    assert alone["checkpoint"]["path"].endswith("pretrain-epoch-0001.safetensors")


def test_the_hash_of_a_list_is_of_its_clips_and_labels() -> None:
    def of(root: str, *clips: tuple[str, int], labelled: bool = True) -> str:
        return hash_samples([Sample(f"{root}/{name}", label) for name, label in clips], labelled=labelled)

    clips = (("a/1.mp4", 0), ("b/2.mp4", 1))
    assert of("/here", *clips) == of("/there/else", *clips), "a folder may be moved"
    assert len({of("/x", *clips), of("/x", *clips[::-1]), of("/x", clips[0], ("b/2.mp4", 0)),
                of("/x", clips[0], ("b/3.mp4", 1)), of("/x", *clips, labelled=False)}) == 5  # fmt: skip


def git(root: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    names = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["git", *words], cwd=root, check=True, capture_output=True, text=True, env=environment | names
    ).stdout.strip()  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_a_checkout_of_the_package_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "outer" / "package"
    (root / "mae_dfer").mkdir(parents=True)
    git(tmp_path / "outer", "init", "-q")
    assert find_commit(root) is None, "another repository's"
    git(root, "init", "-q")
    assert find_commit(root) is None, "no commit yet"
    (root / "mae_dfer" / "code.py").write_text("1")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "x")
    head = git(root, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))  # as in a hook of another repository
    assert find_commit(root) == head
    (root / "notes.txt").touch()
    assert find_commit(root) == head, "no file of the package"
    (root / "mae_dfer" / "code.py").write_text("2")
    assert find_commit(root) == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert find_commit(root) is None


def test_another_decoder_is_named_with_the_one_behind_it() -> None:
    pytest.importorskip("decord")
    found = describe_decoder("decord")
    assert found["name"] == "decord" and found["otherwise"]["name"] == "pyav" and "libavcodec" in found["libraries"]
