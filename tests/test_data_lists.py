"""Lists of clips: separators, labels, headers, encodings, roots, and errors that name file and line."""

import codecs
import csv
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mae_dfer.config import TrainConfig
from mae_dfer.data import Sample, open_dataset, read_classes, read_list
from mae_dfer.data.check import main as check
from mae_dfer.errors import UserError
from mae_dfer.training.evaluate import _write_predictions
from mae_dfer.training.hardware import Hardware
from mae_dfer.training.inputs import open_data

CLASSES = ["happy", "very happy", "sad", "Über, all"]


def write(folder, text, name="list.txt"):
    file = folder / name
    file.write_text(text, encoding="utf-8", newline="")
    return file


def make(folder, *names):
    """Files of those names in a folder, which is returned."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def quietly(file, **settings):
    """(samples, what was said) of a list."""
    said = []
    return read_list(file, say=said.append, **settings), said


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
        ("a b;c.mp4;3", "a b;c.mp4", 3),
        ("a.mp4 3.0", "a.mp4", 3),
        ('"a, b.mp4",3', "a, b.mp4", 3),
        ('"a ""b"" c.mp4 ", "3"', 'a "b" c.mp4 ', 3),
        ('"clip 12" 3', "clip 12", 3),
        ("'a b.mp4',3", "'a b.mp4'", 3),
        ('say "a, b" c.mp4 3', 'say "a, b" c.mp4', 3),
        ('"a" b.mp4 3', '"a" b.mp4', 3),
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
    ("line", "path", "label"),
    [
        ("a.mp4 sad", "a.mp4", 2),
        ("happy_01.mp4 HAPPY", "happy_01.mp4", 0),
        ("a.mp4, 'Sad' ", "a.mp4", 2),
        ("a.mp4 Very Happy", "a.mp4", 1),
        ("a.mp4,very happy", "a.mp4", 1),
        ('"a very",happy', "a very", 0),
        ("very happy", "very", 0),
        ('a.mp4,"über, all"', "a.mp4", 3),
        ("a.mp4 U\u0308ber, all", "a.mp4", 3),
        ("a.mp4 1.0", "a.mp4", 1),
    ],
)
def test_a_word_is_the_longest_class_name_in_any_case(tmp_path, line, path, label):
    assert read_list(write(tmp_path, line), root="/r", classes=CLASSES) == [Sample(f"/r/{path}", label)]


@pytest.mark.parametrize(
    ("classes", "line", "message"),
    [
        (CLASSES, "a.mp4 hapy", r"list\.txt:1: label 'hapy' is not a class name; did you mean 'happy'\?"),
        (CLASSES, "a.mp4 nan", "the classes are happy, very happy, sad"),
        (CLASSES, "a.mp4 3.5", r"label '3\.5' is not the index"),
        (CLASSES, "a.mp4 4", "label 4 is out of range for 4 classes"),
        (CLASSES, "a.mp4 " + "9" * 5000, "is not the index"),
        (CLASSES, '"",2', "the path is empty"),
        (CLASSES, 'a.mp4,""', "no label after the path"),
        (CLASSES, "label,path", r"'path' is not a class name.*\(a header must name the columns"),
        (["Sad", "sad"], "a.mp4 SAD", "label 'SAD' may mean 'Sad' and 'sad'"),
        (["1", "2", "3"], "a.mp4 2", r"label 2 may be the index 2 or the class named '2', whose index is 1"),
        (["1", "2", "3"], "a.mp4 3.0", "label 3.0 may be the index 3 or the class named '3'"),
        (["-1", "0", "1"], "a.mp4 -1", "label -1 may be"),
        (None, "a.mp4 sad", "label 'sad' is not an integer, and no class names are known"),
    ],
)
def test_labels_that_are_no_class_or_two_are_refused(tmp_path, classes, line, message):
    with pytest.raises(UserError, match=message):
        read_list(write(tmp_path, line), classes=classes)


def test_exact_spelling_and_agreeing_numbers_are_not_ambiguous(tmp_path):
    assert read_list(write(tmp_path, "a.mp4 sad"), classes=["Sad", "sad"])[0].label == 1
    assert read_list(write(tmp_path, "a.mp4 1"), classes=["0", "1"])[0].label == 1


@pytest.mark.parametrize(
    "header",
    ["path label", "video_name,label", "filename;Emotion", "name\tlabel", "path frames label", '"Video Name","Class"'],
)
def test_a_header_is_skipped_and_told_once(tmp_path, header):
    file = write(tmp_path, f"# made by hand\n\n{header}\na.mp4 1\nb.mp4 0\n")
    samples, said = quietly(file, classes=CLASSES)
    assert [sample.label for sample in samples] == [1, 0]
    assert said == [f"{file}:3: skipped the header {header!r}"]


def test_a_first_clip_is_not_a_header_and_a_later_line_is_none(tmp_path):
    for line in ("label.mp4 happy", "happy_01.mp4 happy", "path 1", "video emotion", "clip_01 sad"):
        samples, said = quietly(write(tmp_path, line), classes=[*CLASSES, "Emotion"])
        assert len(samples) == 1 and not said
    with pytest.raises(UserError, match=r"list\.txt:2: label 'label'"):
        read_list(write(tmp_path, "a.mp4 1\npath label\n"), classes=CLASSES)


def test_a_header_of_an_unlabelled_list_is_no_file_that_exists(tmp_path):
    file = write(tmp_path, "path\na.mp4\n")
    samples, said = quietly(file, labelled=False)
    assert [os.path.basename(sample.path) for sample in samples] == ["a.mp4"] and "header 'path'" in said[0]
    make(tmp_path, "path")
    samples, said = quietly(file, labelled=False)
    assert [os.path.basename(sample.path) for sample in samples] == ["path", "a.mp4"] and not said


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
        text = "sad\nFröhlich\n" if name == "classes.txt" else "# 1\nä b.mp4 fröhlich\n表情.mp4 0\n"
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


def test_the_last_field_of_an_unlabelled_list_is_a_label_where_the_files_say_so(tmp_path):
    make(tmp_path, "a.mp4", "b.mp4", "take one/0.png", "clip 3.0/0.png", "c.mp4", "d/0.png")
    lines = ["a.mp4 happy", "b.mp4,very happy", "take one", "clip 3.0", "c.mp4 3.0", "c.mp4,", "gone.mp4 sad", "d 9 x"]
    expected = [("a.mp4", -1), ("b.mp4", -1), ("take one", -1), ("clip 3.0", -1), ("c.mp4", 3), ("c.mp4", -1),
                ("gone.mp4", -1), ("d", -1)]  # fmt: skip
    samples, said = quietly(write(tmp_path, "\n".join(lines)), labelled=False)
    assert samples == [Sample(str(tmp_path / path), label) for path, label in expected]
    assert any("6 of 8 lines end in a label" in line for line in said)
    samples, _ = quietly(write(tmp_path, "a.mp4 HAPPY\nb.mp4 Very happy\nc.mp4 9\n"), labelled=False, classes=CLASSES)
    assert [sample.label for sample in samples] == [0, 1, 9]


@pytest.mark.parametrize("classes", ["", "Sad\nJoy\n", "Angry\nSad\n"])
def test_check_reads_words_with_and_without_classes(tmp_path, classes, capsys):
    file = write(make(tmp_path, "a.mp4"), "path,label\na.mp4,joy\ngone.mp4,joy\n")
    if classes:
        write(tmp_path, classes, "classes.txt")
    assert check([str(file)]) == 1
    header, *report = (tmp_path / "list.txt.broken.txt").read_text().splitlines()
    assert header.startswith("# ")
    assert [line.split("\t")[0] for line in report] == [str(tmp_path / "a.mp4"), str(tmp_path / "gone.mp4")]
    assert "skipped the header" in capsys.readouterr().err


@pytest.mark.parametrize("separator", [" ", "\t", ",", " , "])
def test_a_number_of_frames_is_told_from_a_path_by_the_files(tmp_path, separator):
    make(tmp_path, "data/clips/0001/0.png", "data/clip 12/0.png", "data/clip/0.png", "data/a, b/0.png")
    rows = [("/old/clips/0001", 120, 3), ("clip", 12, 3), ("clip", 120, 3), ("gone", 7, 1), ('"a, b"', 5, "sad")]
    file = write(tmp_path, "".join(separator.join(map(str, row)) + "\n" for row in rows))
    samples, said = quietly(file, root=tmp_path / "data", remap=("/old", str(tmp_path / "data")), classes=CLASSES)
    whole = f"clip{separator}12" if separator == " " else "clip"
    names = ["clips/0001", whole, "clip", "gone", "a, b"]
    assert samples == [
        Sample(str(tmp_path / "data" / n), label) for n, label in zip(names, [3, 3, 3, 1, 2], strict=True)
    ]
    assert len(said) == 1 and f"{4 if separator == ' ' else 5} of 5 lines have a number of frames" in said[0]


def test_without_files_a_number_belongs_to_the_path(tmp_path):
    assert quietly(write(tmp_path, "clips/0001 120 3\n"), root="/r") == ([Sample("/r/clips/0001 120", 3)], [])


def test_a_published_list_for_pre_training(tmp_path):
    samples, _ = quietly(write(make(tmp_path, "a.mp4", "b.mp4"), "a.mp4  0  -1\nb.mp4  0  -1\n"), labelled=False)
    assert samples == [Sample(str(tmp_path / name), -1) for name in ("a.mp4", "b.mp4")]


foreign = pytest.mark.skipif(os.name == "nt", reason="there they are paths of this system")


@foreign
@pytest.mark.parametrize(
    ("path", "found"),
    [
        (r"C:\data\a.mp4", "data/a.mp4"),
        (r"C:\other\my clips\a.mp4", "my clips/a.mp4"),
        ("c:/other/my clips/a.mp4", "my clips/a.mp4"),
        (r"D:\x\..\y\1\b.mp4", "1/b.mp4"),
        (r"\\server\share\1\b.mp4", "1/b.mp4"),
        (r"\2\b.mp4", "2/b.mp4"),
        (r"\\?\C:\data\a.mp4", "data/a.mp4"),
        (r"my clips\a.mp4", "my clips/a.mp4"),
        (r".\1\..\2\b.mp4", "2/b.mp4"),
        (r"real\name.mp4", r"real\name.mp4"),
        (r"ROOT/1\b.mp4", "1/b.mp4"),
    ],
)
def test_windows_paths_are_looked_up_below_the_root(tmp_path, path, found):
    make(tmp_path, "a.mp4", "data/a.mp4", "my clips/a.mp4", "1/b.mp4", "2/b.mp4", r"real\name.mp4", "real/name.mp4")
    path = path.replace("ROOT", str(tmp_path))
    file = write(tmp_path, f'{path} 1\n"{path}",1\n')
    assert read_list(file) == [Sample(str(tmp_path / found), 1)] * 2


@foreign
def test_windows_paths_of_a_list_share_a_folder(tmp_path, monkeypatch):
    make(tmp_path / "root", *(f"clips/{index}.mp4" for index in range(50)))
    lines = [rf"C:\my\data\clips\{index}.mp4 0" for index in range(-1, 50)]
    asked = []
    real = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: asked.append(path) or real(path))
    samples = read_list(write(tmp_path, "\n".join(lines)), root=tmp_path / "root")
    assert [sample.path for sample in samples] == [str(tmp_path / "root" / f"clips/{i}.mp4") for i in range(-1, 50)]
    assert len(asked) < 2.5 * len(lines)
    asked.clear()
    read_list(write(tmp_path, "a.mp4 1\nmy clips/b c.mp4,0\n/data/12 3\n"))
    assert not asked, "lists of plain paths are read without a look at the files"


@foreign
def test_windows_paths_that_lead_nowhere_or_to_one_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"list\.txt:2: no end of the Windows path sub.a\.mp4 .*--data-root"):
        read_list(write(tmp_path, "b.mp4 1\nsub\\a.mp4 1\n"))
    make(tmp_path, "1.mp4")
    with pytest.raises(UserError, match=r"list\.txt:2: C:.a.1\.mp4 and C:.b.1\.mp4 lead to the same file"):
        read_list(write(tmp_path, "C:\\a\\1.mp4 1\nC:\\b\\1.mp4 0\n"))


@foreign
def test_windows_paths_are_remapped_and_have_frames(tmp_path):
    make(tmp_path, "clips/0001/0.png", "clips/take 2/0.png")
    file = write(tmp_path, "D:\\set\\clips\\0001 120 3\nD:\\set\\clips\\take 2 3\n")
    expected = [Sample(str(tmp_path / "clips/0001"), 3), Sample(str(tmp_path / "clips/take 2"), 3)]
    assert quietly(file)[0] == expected
    assert quietly(file, root="/r", remap=("D:\\set\\", str(tmp_path)))[0] == expected


def test_on_windows_its_paths_are_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr("mae_dfer.data.paths.ON_WINDOWS", True)
    assert read_list(write(tmp_path, "sub\\a.mp4 1\n"), root="/r") == [Sample("/r/sub\\a.mp4", 1)]


NAMES = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\\/:~.\ufeff"), min_size=1, max_size=12
)
PATHS = st.lists(NAMES | st.sampled_from(['a "b", c', "12", "x 12", "'q'", "path", "#1", "a;", " a"]), min_size=1,
                 max_size=3).map("/".join)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS, st.integers(0, 6), st.sampled_from(",;\t"))
@example('"', 3, ",")
@example("a, ", 3, ",")
def test_what_the_csv_module_writes_is_read(tmp_path, path, label, delimiter):
    for quoting in (csv.QUOTE_ALL, csv.QUOTE_MINIMAL):
        if quoting == csv.QUOTE_MINIMAL and (path != path.strip() or path[0] == "#" or path[-1] in ",;"):
            continue  # what no quotes protect: spaces at the ends, a comment, a separator before the separator
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, quoting=quoting).writerow([path, label])
        assert read_list(write(tmp_path, text.getvalue()), root="/r") == [Sample(f"/r/{path}", label)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS.filter(lambda path: path == path.strip(" ,;") == path.strip() and path[0] not in '#"'), st.integers(0, 6))
def test_a_plain_path_before_a_space_is_read(tmp_path, path, label):
    assert read_list(write(tmp_path, f"{path} {label}"), root="/r") == [Sample(f"/r/{path}", label)]


def test_clips_of_one_base_name_stay_apart(tmp_path):
    samples = read_list(write(tmp_path, "a/1.mp4 0\nb/1.mp4 1\n"))
    assert samples == [Sample(str(tmp_path / "a/1.mp4"), 0), Sample(str(tmp_path / "b/1.mp4"), 1)]
    _write_predictions(samples, np.eye(2), ["sad", "happy"], SimpleNamespace(path=tmp_path))
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [sample.path for sample in samples]


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 sad\n1 very happy\n", "numbers its classes from 0"),
        ("index,name\n0,sad\n1,very happy\n", "numbers its classes from 0"),
        ("sad;1\nvery happy;2\n", "labels that are integers start at 0, which is sad"),
        ("1: very happy\n0: sad\n", "numbers its classes from 0"),
    ],
)
def test_numbers_of_classes_are_no_part_of_their_names(tmp_path, text, said, capsys):
    assert open_dataset(dataset(tmp_path, classes=text)).classes == ["sad", "very happy"]
    note = capsys.readouterr().err
    assert note.startswith(f"note: {tmp_path / 'classes.txt'} ") and said in note and note.count("\n") == 1


@pytest.mark.parametrize(
    "text", ["stage 1\nstage 2\n", "0 sad\n2 happy\n", "0 sad\nhappy\n", "7\n8\n", "2 a\n3 b\n", "#joy\n# sad\n"]
)
def test_numbers_and_marks_in_class_names_stay(tmp_path, text, capsys):
    assert open_dataset(dataset(tmp_path, classes=text)).classes == text.splitlines()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_a_run_tells(tmp_path, rank, capsys):
    dataset(tmp_path, train="path label\na.mp4 SAD\n")
    data = open_data(TrainConfig(data=str(tmp_path)), Hardware(torch.device("cpu"), None, rank, world_size=2))
    assert data.train == [Sample(str(tmp_path / "a.mp4"), 1)]
    assert capsys.readouterr().err.count("note: ") == (1 if rank == 0 else 0)


def test_a_number_between_a_video_file_and_its_label_is_not_guessed_at(tmp_path):
    """It may be the label itself, before a fold, a second label, or digits after a decimal comma."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "frames").mkdir()
    for line in ("a.mp4,0,1", "a.mp4 3 5", "a.mp4;3,0", "a.mp4\t1\t0"):
        with pytest.raises(UserError, match=r"list\.txt:1: two columns follow the path of a file, a\.mp4"):
            read_list(write(tmp_path, line + "\n"))
    assert read_list(write(tmp_path, "frames 120 3\n")) == [Sample(str(tmp_path / "frames"), 3)]
    assert read_list(write(tmp_path, "a.mp4 0 -1\n"), labelled=False) == [Sample(str(tmp_path / "a.mp4"), -1)]


def test_paths_of_an_unlabelled_list_may_end_in_numbers(tmp_path):
    for name in ("clip", "clip 3", "sentence 1"):
        (tmp_path / name).mkdir()
    file = write(tmp_path, "clip 3\nsentence 1\nsentence 2\nclip 3 -1\n")
    paths = [sample.path.rsplit("/", 1)[1] for sample in read_list(file, labelled=False, say=lambda _: None)]
    assert paths == ["clip 3", "sentence 1", "sentence 2", "clip 3"]


def test_class_names_on_one_line_are_told(tmp_path):
    (tmp_path / "classes.txt").write_text("left, right\n")
    with pytest.raises(UserError, match="one class name per line"):
        read_classes(tmp_path / "classes.txt")
