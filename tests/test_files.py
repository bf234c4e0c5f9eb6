"""Files are replaced as a whole, through links, with the user's permissions; and what must stay is not replaced."""

import errno
import os
import stat

import pytest

from mae_dfer import create_model
from mae_dfer.checkpoint import save_official, save_weights
from mae_dfer.errors import UserError
from mae_dfer.files import check_writable, write_atomically

SMALL = {"img_size": 32, "num_frames": 4, "region_size": (1, 2, 1), "embed_dim": 16, "depth": 1, "num_heads": 1}


def write(path, text="new"):
    write_atomically(path, lambda temporary: temporary.write_text(text))


def permissions(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o007])
def test_every_kind_of_file_has_the_permissions_of_the_umask(tmp_path, umask, mask):
    umask(mask)
    model = create_model("lgi_former_base_patch16_160", **SMALL)
    save_weights(model, tmp_path / "own.safetensors")
    save_official(model, tmp_path / "published.pth")
    write(tmp_path / "text.json")
    assert {path.name: permissions(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ["own.safetensors", "published.pth", "text.json"], 0o666 & ~mask
    )


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, umask):
    umask(0o022)
    path = tmp_path / "own.safetensors"
    path.write_text("old")
    path.chmod(0o640)
    save_weights(create_model("lgi_former_base_patch16_160", **SMALL), path)
    assert permissions(path) == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_the_target_of_a_link_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target.txt", tmp_path / "link.txt"
    if there:
        target.write_text("old")
    link.symlink_to("far/target.txt")
    seen = []
    write_atomically(link, lambda temporary: (seen.append(temporary), temporary.write_text("new")))
    assert link.is_symlink() and target.read_text() == "new" and not target.is_symlink()
    assert seen[0].parent == target.parent, "a rename cannot leave a file system"
    assert len(list(tmp_path.iterdir())) == 2 and len(list(target.parent.iterdir())) == 1


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, words in (("pipe", "is a device, a pipe or a socket"), ("folder", "is a folder")):
        for refuse in (write, check_writable):
            with pytest.raises(UserError, match=words):
                refuse(tmp_path / name)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    with pytest.raises(UserError, match="is a device"):
        check_writable(os.devnull)


def test_a_failure_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "result.csv"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as caught:
        write_atomically(path, fail)
    assert caught.value.filename == str(path) and caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_inputs_and_checkpoints_are_told_by_any_name(tmp_path):
    kept = tmp_path / "clip.mp4"
    kept.write_text("video")
    os.link(kept, tmp_path / "hard.csv")
    (tmp_path / "soft.csv").symlink_to("clip.mp4")
    (tmp_path / "folder").symlink_to(".")
    for name in ("clip.mp4", "hard.csv", "soft.csv", "folder/clip.mp4"):
        with pytest.raises(UserError, match="would replace .*clip.mp4"):
            check_writable(tmp_path / name, [tmp_path / "gone.mp4", kept])
    check_writable(tmp_path / "other.csv", [kept])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="among the checkpoints of a run"):
        check_writable(tmp_path / "run" / "checkpoints" / "finetune-epoch-0001.state.pt")



def test_a_name_as_long_as_file_systems_allow_is_written(tmp_path):
    path = tmp_path / ("é" * 125 + ".csv")
    write_atomically(path, lambda temporary: temporary.write_text("x"))
    assert path.read_text() == "x" and list(tmp_path.iterdir()) == [path]
