"""Files of torch.save are read without running what they hold, and what is damaged or hostile ends in one line."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import enum
import functools
import io
import pathlib
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_files import FORMATS, add_entry, pickle_ends, rewrite_zip, save

from mae_dfer.checkpoint.torch_file import read_torch_file
from mae_dfer.checkpoint.unpickle import Placeholder
from mae_dfer.errors import UserError

CANARY = "canary"
WEIGHT = torch.arange(6.0).reshape(2, 3)


class Canary:
    """Leaves a file behind, whichever way a pickle gets it to do something."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Canary:
        if args or kwargs:
            sing()
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        sing()

    def __setitem__(self, key: Any, value: Any) -> None:
        sing()

    def __hash__(self) -> int:
        sing()
        return 0

    def append(self, value: Any) -> None:
        sing()

    def extend(self, values: Any) -> None:
        sing()


class Setter:
    __slots__ = ("value",)

    def __setattr__(self, name: str, value: Any) -> None:
        sing()


def sing(*_: Any) -> None:
    Path(CANARY).touch()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


HERE = __name__
MADE = name(HERE, "Canary") + b")\x81"
NESTED = pickle.dumps(functools.partial(sing))
# Instructions that push one value, for an unpickler that runs them.
PAYLOADS = {
    "REDUCE": name(HERE, "sing") + b")R",
    "REDUCE of open": name("io", "open") + text(CANARY) + text("w") + b"\x86R",
    "REDUCE of eval": name("builtins", "eval") + text(f"open('{CANARY}', 'w')") + b"\x85R",
    "REDUCE of system": name("os", "system") + text(f"echo > {CANARY}") + b"\x85R",
    "REDUCE of a partial": name("functools", "partial") + name(HERE, "sing") + b"\x85R)R",
    "REDUCE of getattr": name("builtins", "getattr") + name("pathlib", "Path") + text("touch") + b"\x86R"
    + name("pathlib", "Path") + text(CANARY) + b"\x85R\x85R",
    "REDUCE of methodcaller": name("operator", "methodcaller") + text("touch") + b"\x85R"
    + name("pathlib", "Path") + text(CANARY) + b"\x85R\x85R",
    "REDUCE of map": name("builtins", "list") + name("builtins", "map") + name(HERE, "sing") + b"]K\x01a\x86R\x85R",
    "REDUCE of loads": name("pickle", "loads") + b"B" + struct.pack("<I", len(NESTED)) + NESTED + b"\x85R)R",
    "dotted name": text("os") + text("path.os.system") + b"\x93" + text(f"echo > {CANARY}") + b"\x85R",
    "NEWOBJ": name(HERE, "Canary") + b"K\x01\x85\x81",
    "NEWOBJ_EX": name(HERE, "Canary") + b")}" + text("key") + b"K\x01s\x92",
    "OBJ": b"(" + name(HERE, "Canary") + b"K\x01o",
    "INST": b"(K\x01i" + f"{HERE}\nCanary\n".encode(),
    "EXT1": b"\x82\xf0)R",
    "BUILD": MADE + b"K\x01b",
    "BUILD of slots": name(HERE, "Setter") + b")\x81N}" + text("value") + b"K\x01s\x86b",
    "APPEND": MADE + b"K\x01a",
    "APPENDS": MADE + b"(K\x01K\x02e",
    "SETITEM": MADE + b"K\x01K\x02s",
    "SETITEMS": MADE + b"(K\x01K\x02u",
    "key": b"}" + MADE + b"K\x01s",
    "member of a set": b"\x8f(" + MADE + b"\x90",
    "member of a frozenset": b"(" + MADE + b"\x91",
    "subclass of a tensor": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + name(HERE, "sing")
    + name("torch", "Tensor") + b"))tR",
    "hooks of a parameter": name("torch._utils", "_rebuild_parameter") + b"(" + name(HERE, "sing") + b")R\x89)tR",
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def extension() -> Any:
    copyreg.add_extension(HERE, "sing", 0xF0)
    yield
    copyreg.remove_extension(HERE, "sing", 0xF0)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_instruction_of_a_pickle_runs_anything(payload: str, tmp_path: Path, extension: Any) -> None:
    try:
        pickle.loads(b"\x80\x04" + PAYLOADS[payload] + b".")
    except Exception:  # it may object to what the call returned
        pass
    assert Path(CANARY).exists(), "the payload would run"
    Path(CANARY).unlink()
    for layout in FORMATS:
        path = save({"weight": WEIGHT}, tmp_path / "file.pth", layout)
        add_entry(path, PAYLOADS[payload])
        content = read_torch_file(path)
        assert torch.equal(content["weight"], WEIGHT) and "payload" in content
        assert not Path(CANARY).exists()


@pytest.mark.parametrize("called", ["torch.storage._load_from_bytes", "torch._utils._import_dotted_name", "torch.load"])
def test_no_other_function_of_torch_is_called(called: str, tmp_path: Path) -> None:
    module, attribute = called.rsplit(".", 1)
    path = save({"weight": WEIGHT}, tmp_path / "file.pth")
    add_entry(path, name(module, attribute) + text("os.system") + b"\x85R")
    assert read_torch_file(path)["payload"].name == called


class Colour(enum.Enum):
    RED = 1


class Options(dict):
    pass


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("protocol", [2, 5])
def test_tensors_are_taken_whatever_is_beside_them(layout: str, protocol: int, tmp_path: Path) -> None:
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    options = Options(weight=WEIGHT)
    options.state = {"more": 1}  # type: ignore[attr-defined]
    others = {
        "args": argparse.Namespace(path=pathlib.PurePosixPath("/a"), lr=1e-3), "accuracy": np.float64(0.5),
        "array": np.ones(3), "objects": np.array([{}], dtype=object), "generator": np.random.default_rng(0),
        "when": datetime.datetime(2023, 7, 1), "colour": Colour.RED, "counter": collections.Counter("aab"),
        "queue": collections.deque([1, 2]), "default": collections.defaultdict(list, a=[1]), "set": {1, "two"},
        "frozen": frozenset([3]), "bytes": b"\x00\xff", "array of bytes": bytearray(b"ab"), "number": 10**40,
        "complex": 1j, "slice": slice(1), "function": functools.partial(print, 1), "class": torch.nn.Linear,
        "dtype": torch.bfloat16, "device": torch.device("cuda:1"), "size": WEIGHT.shape, "module": linear,
        "optimizer": optimizer.state_dict(), "whole optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(
            optimizer, 1).state_dict(), ("a", 1): "tuple", "generator state": torch.get_rng_state(), None: 1.5,
        "options": options, "list": [1, [2.5, None, True]], "surrogate": "\ud800",
    }  # fmt: skip
    weights = collections.OrderedDict(weight=WEIGHT)
    weights._metadata = {"version": 1}  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sources that are not found
        path = save({**others, "model": weights}, tmp_path / "file.pth", layout, protocol)
    content = read_torch_file(path)
    assert torch.equal(content["model"]["weight"], WEIGHT) and list(content["model"]) == ["weight"]
    assert content["args"].name == "argparse.Namespace" and content["accuracy"].name.endswith("multiarray.scalar")
    assert content["list"] == [1, [2.5, None, True]] and content["number"] == 10**40
    assert torch.equal(content["options"].items["weight"], WEIGHT)
    state = content["optimizer"]["state"][0]
    assert torch.equal(state["exp_avg"], optimizer.state[linear.weight]["exp_avg"])
    assert content["generator state"].dtype == torch.uint8


DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.complex128, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16,
    torch.uint32, torch.bool,
)  # fmt: skip


@pytest.mark.parametrize("layout", FORMATS)
def test_tensors_come_back_as_they_were(layout: str, tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {str(dtype): torch.tensor([0, 1, 1, 0]).to(dtype) for dtype in DTYPES}
    base = torch.randn(4, 5, 6)
    attributed = torch.ones(2)
    attributed.origin = "here"  # type: ignore[attr-defined]
    tensors |= {
        "base": base, "transposed": base.transpose(0, 2), "slice": base[1:3, ::2, 4], "scalar": base[0, 0, 0],
        "empty": base[:, :0], "nothing": torch.empty(0), "parameter": torch.nn.Parameter(base[0]),
        "attributed": attributed, "wants a gradient": torch.ones(3, requires_grad=True),
        "parameter with state": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    tensors["parameter with state"].origin = "here"  # type: ignore[attr-defined]
    content = read_torch_file(save(tensors, tmp_path / "file.pth", layout))
    for key, tensor in tensors.items():
        assert type(content[key]) is torch.Tensor and content[key].dtype == tensor.dtype, key
        assert content[key].shape == tensor.shape and content[key].stride() == tensor.stride(), key
        assert content[key].view(torch.uint8).tolist() == tensor.detach().view(torch.uint8).tolist() if (
            tensor.is_contiguous() and tensor.dim()
        ) else torch.equal(content[key], tensor), key
    content["base"].zero_()
    assert not content["transposed"].any() and not content["slice"].any(), "views share memory, as they did"
    assert read_torch_file(tmp_path / "file.pth")["base"].any(), "the file stays as it is"


def test_storages_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    path = save({"a": torch.ones(1, dtype=torch.int8), "b": WEIGHT.to(torch.complex128)}, tmp_path / "file.pth")
    rewrite_zip(path, lambda records: records.update({"data/0": records["data/0"] + b"\0"}))
    assert torch.equal(read_torch_file(path)["b"], WEIGHT.to(torch.complex128))


def test_views_of_storages_in_old_streams_are_read(tmp_path: Path) -> None:
    path = save({"weight": WEIGHT}, tmp_path / "file.pth", "stream")
    content = path.read_bytes()
    # The last of the storage's own elements and the view of it: elements 2 and 3.
    old, new = b"K\x06Ntq", b"K\x06" + text("view") + b"K\x02K\x02\x87tq"
    assert content.count(old) == 1
    content = content.replace(old, new).replace(b"K\x00K\x02K\x03\x86", b"K\x00K\x01K\x02\x86", 1)
    path.write_bytes(content)
    assert read_torch_file(path)["weight"].tolist() == [[2.0, 3.0]]


def test_ordered_dictionaries_of_python_2_are_read(tmp_path: Path) -> None:
    path = save({"weight": WEIGHT}, tmp_path / "file.pth")
    add_entry(path, name("collections", "OrderedDict") + b"](](U\x06weightK\x01ee\x85R")
    assert read_torch_file(path)["payload"] == {"weight": 1}


@pytest.mark.filterwarnings("ignore::UserWarning")  # such tensors are in beta, or deprecated
@pytest.mark.parametrize("layout", FORMATS)
def test_other_kinds_of_tensors_are_named_and_harm_no_others(layout: str, tmp_path: Path) -> None:
    kinds = {
        "sparse": WEIGHT.to_sparse(), "sparse rows": WEIGHT.to_sparse_csr(), "meta": WEIGHT.to("meta"),
        "quantised": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.quint8),
        "conjugated": WEIGHT.to(torch.complex64).conj(), "expanded": torch.ones(1).expand(2**20, 2**20),
        "nested": torch.nested.nested_tensor([WEIGHT, WEIGHT]),
    }  # fmt: skip
    content = read_torch_file(save({"weight": WEIGHT, **kinds}, tmp_path / "file.pth", layout))
    assert torch.equal(content["weight"], WEIGHT)
    assert [type(content[kind]) for kind in kinds] == [Placeholder] * len(kinds)


class Lie:
    """A tensor whose numbers are not true of its storage."""

    def __init__(self, offset: Any = 0, size: Any = (2, 3), stride: Any = (3, 1), dtype: Any = None) -> None:
        self.arguments = (offset, size, stride, False, collections.OrderedDict())
        self.dtype = dtype

    def __reduce__(self) -> Any:
        storage = WEIGHT._typed_storage()  # type: ignore[attr-defined]
        if self.dtype is not None:
            return torch._utils._rebuild_tensor_v3, (storage, *self.arguments, self.dtype)
        return torch._utils._rebuild_tensor_v2, (storage, *self.arguments)


LIES = {
    "too long": Lie(size=(2, 4)), "too wide a step": Lie(stride=(4, 1)), "offset": Lie(offset=1),
    "negative offset": Lie(offset=-1), "negative size": Lie(size=(-2, 3)), "negative stride": Lie(stride=(-3, 1)),
    "huge offset": Lie(offset=2**63), "huge size": Lie(size=(2**62, 2**62), stride=(1, 1)),
    "overflow to zero": Lie(size=(2**32, 2**32), stride=(2**32, 2**32)), "fewer strides": Lie(stride=(1,)),
    "size of one number": Lie(size=6, stride=1), "offset of text": Lie(offset="0"), "size of text": Lie(size=("2", 3)),
    "a boolean": Lie(offset=True), "70 axes": Lie(size=(1,) * 70, stride=(1,) * 70),
    "larger dtype": Lie(dtype=torch.float64), "empty beyond": Lie(offset=7, size=(0,), stride=(1,)),
}  # fmt: skip


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("lie", LIES)
def test_a_tensor_stays_in_its_storage(lie: str, layout: str, tmp_path: Path) -> None:
    path = save({"first": torch.ones(50), "weight": LIES[lie], "last": torch.ones(50)}, tmp_path / "file.pth", layout)
    with pytest.raises(UserError, match=r"file\.pth is damaged or cut short") as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value)


def claim_much(path: Path) -> None:
    """A directory of records that says the storage has ten terabytes."""
    rewrite_zip(path, lambda records: None)  # 32-bit directories are easier to change
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0"))
    extra = struct.pack("<HHQQ", 1, 16, 10**13, 10**13)
    struct.pack_into("<II", content, entry + 20, 0xFFFFFFFF, 0xFFFFFFFF)
    (length,) = struct.unpack_from("<H", content, entry + 28)
    struct.pack_into("<H", content, entry + 30, len(extra))
    content[entry + 46 + length : entry + 46 + length] = extra
    end = content.rindex(b"PK\x05\x06")
    struct.pack_into("<I", content, end + 12, struct.unpack_from("<I", content, end + 12)[0] + len(extra))
    path.write_bytes(content)


def overlap(path: Path) -> None:
    """Two records that are the same bytes of the file, for copies of copies."""
    content = bytearray(path.read_bytes())
    first, second = (content.rindex(b"file/data/%d" % index) - 46 for index in (0, 1))
    for field in (slice(20, 28), slice(42, 46)):  # sizes and place
        content[second + field.start : second + field.stop] = content[first + field.start : first + field.stop]
    path.write_bytes(content)


def replace_pickle(path: Path, instructions: bytes) -> None:
    rewrite_zip(path, lambda records: records.update({"data.pkl": instructions}))


DAMAGES = {
    "a storage cut short": lambda path: rewrite_zip(path, lambda r: r.update({"data/0": r["data/0"][:-1]})),
    "a storage missing": lambda path: rewrite_zip(path, lambda r: r.pop("data/0")),
    "a record of ten terabytes": claim_much,
    "a record twice": overlap,
    "a string of four gigabytes": lambda path: replace_pickle(path, b"\x80\x02X\xff\xff\xff\xffabc."),
    "bytes of many terabytes": lambda path: replace_pickle(path, b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc."),
    "a long of two gigabytes": lambda path: replace_pickle(path, b"\x80\x02\x8b\xff\xff\xff\x7fabc."),
    "a long of minus one byte": lambda path: replace_pickle(path, b"\x80\x02\x8b\xff\xff\xff\xffabc."),
    "a far memo": lambda path: replace_pickle(path, b"\x80\x02]r\xff\xff\xff\xffj\xfe\xff\xff\xff."),
    "no end": lambda path: replace_pickle(path, b"\x80\x02}"),
    "an empty stack": lambda path: replace_pickle(path, b"\x80\x02."),
    "no mark": lambda path: replace_pickle(path, b"\x80\x02t."),
    "a call of a number": lambda path: replace_pickle(path, b"\x80\x02K\x01)R."),
    "an odd number of items": lambda path: replace_pickle(path, b"\x80\x02}(K\x01u."),
    "items of a tensor": lambda path: add_entry(path, text("weight") + b"0(K\x01K\x02u"),
    "a buffer from outside": lambda path: replace_pickle(path, b"\x80\x05\x97."),
    "an instruction of the future": lambda path: replace_pickle(path, b"\x80\x06\xff."),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_archives_end_in_one_line(damage: str, tmp_path: Path) -> None:
    path = save({"weight": torch.ones(5000), "other": torch.ones(10)}, tmp_path / "file.pth")
    DAMAGES[damage](path)
    with pytest.raises(UserError, match=r"file\.pth is damaged or cut short .*again$") as caught:
        read_torch_file(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("count", [-1, -(2**63), 7, 2**62, 2**63 - 1])
def test_a_stream_that_claims_more_than_it_holds_ends_in_one_line(count: int, tmp_path: Path) -> None:
    path = save({"weight": WEIGHT}, tmp_path / "file.pth", "stream")
    content = bytearray(path.read_bytes())
    struct.pack_into("<q", content, pickle_ends(bytes(content), 5)[4], count)
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or cut short"):
        read_torch_file(path)


def test_deep_and_doubling_structures_take_no_time(tmp_path: Path) -> None:
    depth = 50_000
    path = save({"weight": WEIGHT}, tmp_path / "file.pth")
    double = b"K\x01" + b"2\x86" * 60  # 2**60 leaves
    for value in (b"N" + b"\x85" * depth, b"]" * depth + b"a" * (depth - 1), double):
        add_entry(path, value)
        add_entry(path, b"}" + value + b"K\x01s")  # as a key: to hash it would not end
        add_entry(path, b"(" + value + b"\x91")
    assert torch.equal(read_torch_file(path)["weight"], WEIGHT)


def test_a_dictionary_in_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = {"weight": WEIGHT}
    content["model"] = content
    again = read_torch_file(save(content, tmp_path / "file.pth"))
    assert again["model"] is again


def cut(layout: str, share: float) -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(1000)}, content, _use_new_zipfile_serialization=layout == "zip")
    return content.getvalue()[: int(share * content.tell())]


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for record in names:
            target.writestr(record, b"\x80\x02}.")
    return content.getvalue()


IMPOSTORS = {
    "empty": (b"", "is empty"),
    "page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is an HTML page"),
    "page with a BOM": (b"\xef\xbb\xbf<?xml version='1.0'?><html lang='en'>" + "é".encode() * 900, "is an HTML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n", "git lfs pull"),
    "message": (b'{"error": "not found"}', 'is a text file ({"error": "not found"})'),
    "zeros": (bytes(5000), "unfinished download"),
    "half an archive": (cut("zip", 0.5), "damaged or cut short"),
    "half a stream": (cut("stream", 0.5), "damaged or cut short"),
    "the start of a stream": (cut("stream", 0.01), "damaged or cut short"),
    "archive": (archive("document.xml"), "a zip archive without a checkpoint's data.pkl"),
    "TorchScript": (archive("net/data.pkl", "net/constants.pkl", "net/code/net.py"), "a TorchScript archive"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "unpack it first"),
    "plain pickle": (pickle.dumps({"weight": [1.0, 2.0]}), "a plain pickle"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "not a checkpoint"),
}


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_what_is_no_checkpoint_is_named(kind: str, tmp_path: Path) -> None:
    content, words = IMPOSTORS[kind]
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [b"big", b"middle\xff"])
def test_another_byte_order_is_named(order: bytes, tmp_path: Path) -> None:
    path = save({"weight": WEIGHT}, tmp_path / "file.pth")
    rewrite_zip(path, lambda records: records.update(byteorder=order))
    with pytest.raises(UserError, match="of the byte order"):
        read_torch_file(path)


def test_a_compressed_checkpoint_is_named(tmp_path: Path) -> None:
    path = save({"weight": WEIGHT}, tmp_path / "file.pth")
    rewrite_zip(path, lambda records: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # damaged escape sequences
@pytest.mark.parametrize("layout", FORMATS)
def test_random_damage_ends_in_one_line_or_in_tensors(layout: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    tensors = {"weight": WEIGHT, "bias": torch.ones(3)}
    path = tmp_path / "file.pth"
    save({"model": tensors, "args": argparse.Namespace(lr=0.1)}, path, layout)
    add_entry(path, PAYLOADS["REDUCE"])
    whole = path.read_bytes()
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(content))
            content[start : start + rng.choice((0, 1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
        path.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        try:
            read_torch_file(path)
        except UserError as error:
            assert "\n" not in str(error)
    assert not Path(CANARY).exists()
