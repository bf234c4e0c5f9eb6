"""Draws miniature trees of the official data sets, as they are handed out and in variants that people have.

A clip shows a bar whose place tells the class, on a ground that tells the clip, so that no two clips are alike and a
model can learn them in a few steps. Each tree has some dozens of clips and is drawn in about a second.

    python tests/official_trees.py dfew FOLDER
"""

import shutil
import sys
from pathlib import Path

import av
import numpy as np
from moving_face import astronaut, draw, placed
from PIL import Image

from mae_dfer.data.prepare.official import ferv39k, mafw
from mae_dfer.data.sets import CLASSES

SIZE = 32
FOLDS = 5
EMOTIONS = ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")  # as FERV39k spells them
CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
RAVDESS_ACTORS = (1, 4, 5, 9, 13, 17, 24)
CREMA_D_ACTORS = (1001, 1018, 1019, 1040, 1060, 1073, 1091)
ENTERFACE_SUBJECTS = (1, 10, 11, 20, 29, 44)


def picture(label, seed, time, size=(SIZE, SIZE)):
    """One frame, uint8 (H, W, 3)."""
    height, width = size
    rng = np.random.default_rng(seed)
    frame = np.full((height, width, 3), rng.integers(20, 90, 3), np.uint8)
    frame[:: rng.integers(3, 9), :, rng.integers(3)] = rng.integers(90, 140)
    left = (label * width // 11 + time) % width
    frame[:, left : left + max(width // 8, 1)] = 250
    return frame


def write_frames(folder, label, seed, frames=6, name="{:05d}.jpg", start=1, size=(SIZE, SIZE)):
    folder.mkdir(parents=True)
    for time in range(frames):
        Image.fromarray(picture(label, seed, time, size)).save(folder / name.format(time + start))


def write_clip(path, label, seed, frames=6, size=(SIZE, SIZE)):
    """A video; the suffix tells its container and its codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream({".flv": "flv", ".avi": "mpeg4"}.get(path.suffix, "libx264"), rate=25)
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        for time in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(label, seed, time, size), format="rgb24")))
        out.mux(stream.encode())
    return path


# --- DFEW ------------------------------------------------------------------------------------------------------------

DFEW_CLIPS = {number: number % 7 for number in range(1, 36)}
"""Label, from 0 on, of each clip by its number."""


def dfew_fold(number):
    """The fold, 1 … 5, in whose test list a clip is. Each has clips of all classes, as in the other sets."""
    return number % 5 + 1


def draw_dfew(root, form="jpg_256", lists="{split}(single-labeled)/set_{fold}.csv", name="{}"):
    """DFEW with its clips in one form, and its lists; ``name`` formats a clip's number in them."""
    for number, label in DFEW_CLIPS.items():
        draw_dfew_clip(root / "Clip", form, number, label)
    for fold in range(1, FOLDS + 1):
        for split in ("train", "test"):
            path = root / "EmoLabel_DataSplit" / lists.format(split=split, fold=fold)
            path.parent.mkdir(parents=True, exist_ok=True)
            listed = [number for number in DFEW_CLIPS if (dfew_fold(number) == fold) == (split == "test")]
            rows = [f"{name.format(number)},{DFEW_CLIPS[number] + 1}\n" for number in listed]
            path.write_text("video_name,label\n" + "".join(rows))
    return root


def draw_dfew_clip(clips, form, number, label):
    if form == "original":
        write_clip(clips / form / f"part_{number // 8 + 1}" / f"{number}.mp4", label, number, size=(36, 48))
    elif form == "clip_224x224_16f":
        write_frames(clips / form / f"{number:05d}", label, number, 16, "{}.jpg")
    elif form == "clip_224x224_avi":
        write_clip(clips / form / f"{number:05d}.avi", label, number)
    else:
        write_frames(clips / form / f"{number:05d}", label, number, 5 + number % 4)


# --- FERV39k, MAFW ---------------------------------------------------------------------------------------------------

FERV39K_CLIPS = {
    f"{scene}/{emotion}/{number:04d}": label
    for scene in ("Action", "DailyLife")
    for label, emotion in enumerate(EMOTIONS)
    for number in (label + 1, 120 + label)
}


def draw_ferv39k(root, form="2_ClipsforFaceCrop"):
    lists = {"train": [], "test": []}
    for seed, (path, label) in enumerate(FERV39K_CLIPS.items()):
        if form == "0_7_LabelClips":
            write_clip(root / form / f"{path}.mp4", label, seed)
        else:
            write_frames(root / form / path, label, seed)
        lists["test" if path.startswith("DailyLife") and seed % 2 else "train"].append(f"{path} {EMOTIONS[label]}\n")
    (root / "4_setups/All_scenes").mkdir(parents=True)
    for split, lines in lists.items():
        (root / "4_setups/All_scenes" / f"{split}_All.csv").write_text("".join(lines))
    assert form in {form.name for form in ferv39k.FORMS}
    return root


MAFW_CLIPS = {number: number % 11 for number in range(521, 576)}


def mafw_fold(number):
    return number % FOLDS + 1


def draw_mafw(root, form="frames", lists="Train & Test Set"):
    for number, label in MAFW_CLIPS.items():
        if form == "clips":
            write_clip(root / "data/clips" / f"{number:05d}.mp4", label, number, size=(36, 48 + 2 * (number % 3)))
        else:
            write_frames(root / "data" / form / f"{number:05d}", label, number, name="{:04d}.png", start=0)
    for fold in range(1, FOLDS + 1):
        folder = root / lists / "single/no_caption" / f"set_{fold}"
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            listed = [number for number in MAFW_CLIPS if (mafw_fold(number) == fold) == (split == "test")]
            lines = [f"{number:05d}.mp4 {CLASSES['mafw'][MAFW_CLIPS[number]]}\n" for number in listed]
            (folder / f"{split}.txt").write_text("".join(lines))
    assert form in {form.name for form in mafw.FORMS}
    return root


# --- Sets of the laboratory ------------------------------------------------------------------------------------------


def ravdess_names(modality="02", channel="01"):
    """(name, label) of the clips; of each actor and emotion one."""
    return [
        (f"{modality}-{channel}-{emotion:02d}-01-01-01-{actor:02d}", emotion - 1)
        for actor in RAVDESS_ACTORS
        for emotion in range(1, 9)
    ]


def draw_ravdess(root, modalities=("02",), parent="Video_Speech_Actor_{0}/Actor_{0}", frames=False):
    for modality in modalities:
        for seed, (name, label) in enumerate(ravdess_names(modality)):
            folder = root / parent.format(name[-2:])
            if frames:
                write_frames(folder / name, label, seed)
            else:
                write_clip(folder / f"{name}.mp4", label, seed, size=(36, 64))
    return root


def crema_d_names():
    return [
        (f"{actor}_{sentence}_{code}_{level}", label)
        for actor in CREMA_D_ACTORS
        for label, code in enumerate(CODES)
        for sentence, level in (("IEO", "HI"),)
    ]


def draw_crema_d(root, folder="VideoFlash", suffix=".flv"):
    """``suffix`` empty for folders of frames."""
    for seed, (name, label) in enumerate(crema_d_names()):
        if suffix:
            write_clip(root / folder / f"{name}{suffix}", label, seed, size=(36, 48))
        else:
            write_frames(root / folder / name, label, seed)
    (root / "AudioWAV").mkdir(exist_ok=True)
    (root / "AudioWAV" / "1001_IEO_ANG_HI.wav").touch()
    return root


def enterface05_names():
    """(path without suffix, label): some files are named after another sentence, as in the original."""
    return [
        (f"subject {subject}/{emotion}/sentence {sentence}/s{subject}_{emotion[:2]}_{3 - sentence}", label)
        for subject in ENTERFACE_SUBJECTS
        for label, emotion in enumerate(CLASSES["enterface05"])
        for sentence in (1, 2)
    ]


def draw_enterface05(root, folder="enterface database", frames=False):
    for seed, (name, label) in enumerate(enterface05_names()):
        if frames:
            write_frames(root / folder / name.replace(" ", "_"), label, seed)
        else:
            write_clip(root / folder / f"{name}.avi", label, seed, size=(36, 48))
    if not frames:
        write_clip(root / folder / "subject 6/anger/s6_an_1.avi", 0, 600)
        (root / folder / "subject 1/anger/sentence 1/Thumbs.db").touch()
    return root


VOXCELEB2_CLIPS = tuple(
    f"id{person:05d}/{film}/{clip:05d}.mp4"
    for person in (12, 15, 9272)
    for film in ("-5zk3u_L0oE", "21Uxsk56VDQ")
    for clip in (1, 2, 117)
)


def draw_voxceleb2(root, folder="dev/mp4"):
    for seed, path in enumerate(VOXCELEB2_CLIPS):
        write_clip(root / folder / path, seed % 7, seed)
    return root


DRAW = {
    "dfew": draw_dfew, "ferv39k": draw_ferv39k, "mafw": draw_mafw, "ravdess": draw_ravdess, "crema-d": draw_crema_d,
    "enterface05": draw_enterface05, "voxceleb2": draw_voxceleb2,
}  # fmt: skip


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def put_label_out_of_range(path, label, line=3):
    """In a list with commas. Returns the clip of that line as it is written."""
    lines = path.read_text().splitlines()
    name, _, _ = lines[line - 1].rpartition(",")
    lines[line - 1] = f"{name},{label}"
    path.write_text("\n".join(lines) + "\n")
    return name


def put_pointer(path):
    """What a clone without Git LFS leaves in the place of a file."""
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 268113\n")


def empty_folder(folder):
    for file in folder.iterdir():
        file.unlink()


def truncate(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def copy_clip(source, target):
    """The same clip under another name, in the place of what is there."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def put_in_both_lists(train, test):
    """The first clip of a train list in the test list of the same fold, too."""
    line = next(line for line in train.read_text().splitlines() if line[0].isdigit())
    with test.open("a") as file:
        file.write(f"{line}\n")
    return line


def drop_class(path, label):
    """Removes the lines of a list with commas that end in a label."""
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(f",{label}\n")))


def write_from_another_machine(path, prefix="/mnt/data1/DFEW/Clip/jpg_256/"):
    """Gives the clips of a list with commas the absolute paths that they had on another machine."""
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(prefix + line for line in lines)]) + "\n")


def put_whole_frames(folder):
    """In the place of a folder of face crops: frames with a small face in a corner of a large picture."""
    count = len(list(folder.iterdir()))
    empty_folder(folder)
    for time, frame in enumerate(draw([placed((250, 70), 0.4, 0)] * count, astronaut(), size=(320, 240))):
        Image.fromarray(frame).save(folder / f"{time + 1:05d}.jpg")


if __name__ == "__main__":
    DRAW[sys.argv[1]](Path(sys.argv[2]))
