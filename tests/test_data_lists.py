"""Lists of clips: separators, spaces, roots, and errors that name file and line."""

import codecs
import os

import pytest

from mae_dfer.data import Sample, open_dataset, read_list
from mae_dfer.errors import UserError


def write(folder, text, name="list.txt"):
    file = folder / name
    file.write_text(text, encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.mp4 3", "a.mp4", 3),
        ("my clips/a b.mp4 3", "my clips/a b.mp4", 3),
        ("a.mp4,3", "a.mp4", 3),
        ("a, b.mp4, 3", "a, b.mp4", 3),
        ("a,b,3", "a,b", 3),
        ("a b.mp4\t3", "a b.mp4", 3),
        ("clip 12 3", "clip 12", 3),
        ("  a#1.mp4   0  ", "a#1.mp4", 0),
    ],
)
def test_the_label_is_the_last_field(tmp_path, line, path, label):
    assert read_list(write(tmp_path, line + "\n"), root="/r") == [Sample(f"/r/{path}", label)]


def test_blank_lines_comments_and_a_byte_order_mark_are_skipped(tmp_path):
    file = write(tmp_path, "\ufeff# path label\r\n\r\na.mp4 1\r\n  # more\r\nb.mp4 0\r\n")
    assert [s.label for s in read_list(file)] == [1, 0]


def test_relative_paths_join_the_root_and_absolute_ones_stay(tmp_path):
    file = write(tmp_path, "x/a.mp4 0\n/data/b.mp4 1\n")
    assert [s.path for s in read_list(file)] == [str(tmp_path / "x/a.mp4"), "/data/b.mp4"]
    assert [s.path for s in read_list(file, root="/srv")] == ["/srv/x/a.mp4", "/data/b.mp4"]


def test_absolute_paths_of_another_machine_are_remapped_at_folder_borders(tmp_path):
    file = write(tmp_path, "/old/dfew/a b.mp4 0\n/older/dfew/a.mp4 1\n")
    paths = [s.path for s in read_list(file, remap=("/old/", "/new place"))]
    assert paths == ["/new place/dfew/a b.mp4", "/older/dfew/a.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4 happy\n", r"list\.txt:2: label 'happy' is not an integer"),
        ("a.mp4 1.5\n", r"list\.txt:1: label '1.5'"),
        ("\na.mp4 7\n", r"list\.txt:2: label 7 is out of range for 7 classes"),
        ("a.mp4 -1\n", r"list\.txt:1: label -1 is negative"),
        ("a.mp4\n", r"list\.txt:1: no label"),
        ("# nothing\n", "lists no files"),
    ],
)
def test_errors_name_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_list(write(tmp_path, text), num_classes=7)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, mark, encoding, end):
    for name in ("list.txt", "classes.txt", "train.txt", "test.txt"):
        text = "sad\nfröhlich\n" if name == "classes.txt" else "# 1\nä b.mp4 1\n表情.mp4 0\n"
        (tmp_path / name).write_bytes(mark + text.replace("\n", end).encode(encoding))
    expected = [Sample(str(tmp_path / "ä b.mp4"), 1), Sample(str(tmp_path / "表情.mp4"), 0)]
    assert open_dataset(tmp_path).train == expected


def test_marks_inside_a_file_that_was_joined_are_dropped(tmp_path):
    samples = read_list(write(tmp_path, "a.mp4 1\n\ufeffb.mp4 0\n\ufeff# more\n"))
    assert [os.path.basename(sample.path) for sample in samples] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("content", ["é.mp4 1\n".encode("latin-1"), "表情.mp4 1\n".encode("gb18030"), b"a\0b 1\n"])
def test_other_encodings_are_refused_with_a_way_out(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(b"a.mp4 0\n" + content)
    with pytest.raises(UserError, match=r"list\.txt.*save it as UTF-8"):
        read_list(tmp_path / "list.txt")


def test_missing_and_binary_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match="not found"):
        read_list(tmp_path / "no.txt")
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00\x81\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_list(tmp_path / "bin")


def test_unlabelled_lists(tmp_path):
    file = write(tmp_path, "a b.mp4\nb.mp4 2\nclip 12 -1\n")
    samples = read_list(file, root="/r", labelled=False)
    assert samples == [Sample("/r/a b.mp4", -1), Sample("/r/b.mp4", 2), Sample("/r/clip 12", -1)]


def dataset(folder, **files):
    contents = {"classes": "happy\nsad\n", "train": "a.mp4 0\n", "test": "b.mp4 1\n"} | files
    for name, text in contents.items():
        if text is not None:
            write(folder, text, f"{name}.txt")
    return folder


def test_dataset_folder_defaults(tmp_path):
    data = open_dataset(dataset(tmp_path))
    assert data.classes == ["happy", "sad"]
    assert data.train == [Sample(str(tmp_path / "a.mp4"), 0)]
    assert data.val is None
    assert data.pretrain == data.train


def test_dataset_folder_with_everything(tmp_path):
    data = open_dataset(dataset(tmp_path, val="c.mp4 1\n", pretrain="d.mp4\n"), root="/videos")
    assert data.val == [Sample("/videos/c.mp4", 1)]
    assert data.pretrain == [Sample("/videos/d.mp4", -1)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"classes": None, "test": None}, r"classes\.txt, test\.txt missing"),
        ({"classes": "sad\nsad\n"}, "names a class twice: sad"),
        ({"classes": "\n"}, "names no classes"),
        ({"test": "b.mp4 2\n"}, r"test\.txt:1: label 2 is out of range"),
    ],
)
def test_bad_dataset_folders_are_refused(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        open_dataset(dataset(tmp_path, **files))


def test_missing_dataset_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not found"):
        open_dataset(tmp_path / "no")
