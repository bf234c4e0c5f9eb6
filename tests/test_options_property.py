"""Whatever is typed or stored, a command ends with exit code 0 or 2, in the second case with one line that says why.

Stages that train are left out here, so that thousands of cases are cheap: the rest is the real command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train_refusals import SMALL, make_set

from mae_dfer.config import PRESETS, FinetuneConfig, PretrainConfig, TrainConfig, preset
from mae_dfer.data.check import main as check
from mae_dfer.predict import build_parser as build_predict_parser
from mae_dfer.predict import main as predict
from mae_dfer.train import build_parser as build_train_parser
from mae_dfer.train import main as train

Main = Callable[[list[str]], int]

NUMBERS = st.sampled_from(
    ["0", "1", "2", "3", "4", "7", "8", "16", "-1", "0.5", "1.0", "1e-9", "1e30", "1e300", "1e999", "-1e300", "nan",
     "inf", "-inf", "9" * 19, "9" * 400, "1_0", "٣", "1,2", "1x2", "4,4", "8,2,4", "1,2,4", ",", "1,", "1,2,3,4",
     "0,0,0,0", "1e3,2", "True"]
)  # fmt: skip
# Nothing that leads out of the current folder: some options name what is written.
TEXTS = st.sampled_from(
    ["", " ", "-", "--", "auto", "none", "demo!", "cpu", "cuda:99", "tpu", "é表", "\udcff", "a\nb", "%s", "{}", "[b]",
     "x" * 300, "/dev/null", "set", "clip.png", "no/such/file", "run", "model.pth", "rand-m9", "rand-m7-mstd0.5-inc1",
     "vit_tiny_patch16_160", "mae_lgi_former_tiny_patch16_160", "lgi_former_base_patch16_160", "crema-d", "C:\\x",
     "nul\0"]
)  # fmt: skip
ANY_TEXT = st.text(st.characters(exclude_characters="/.~\\"), max_size=8)
VALUES = st.one_of(NUMBERS, TEXTS, ANY_TEXT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder: ``set``, ``model`` (a run that was trained on it), ``clip.png``."""
    root = tmp_path_factory.mktemp("property")
    make_set(root / "set")
    shutil.copy(root / "set" / "test0.png", root / "clip.png")
    with contextlib.chdir(root), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mae_dfer.training.hardware.keep_freed_memory", lambda: None)
        assert ends(train, ["--data", "set", "--output-dir", "model", *SMALL]) == 0
        yield root


def ends(main: Main, arguments: list[str]) -> int:
    """The exit code of a command, which is checked, as is what it prints on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:  # --help
            code = int(end.code or 0)
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    assert code in (0, 2), (arguments, code)
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) > 12, (arguments, lines)
    return code


def train_lightly(arguments: list[str]) -> int:
    """The training command without its stages; a run that it makes is removed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mae_dfer.training.stages.run_stages", lambda *arguments, **more: None)
        try:
            return train(arguments)
        finally:
            for path in (Path("out"), Path("runs")):
                shutil.rmtree(path, ignore_errors=True)


def usual(name: str) -> list[str]:
    """What presets set an option to, as it is typed."""
    found = {"1"}
    for config in map(preset, PRESETS):
        stage, _, setting = name.partition("_")
        holder = getattr(config, stage) if stage in ("pretrain", "finetune") else config
        value = getattr(holder, setting if holder is not config else name, None)
        if value is not None:
            found.add(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return sorted(found)


def options_of(parser: Any, without: tuple[str, ...] = ()) -> st.SearchStrategy[list[str]]:
    """Up to four options of a parser, with values that fit or do not."""

    def with_value(action: Any) -> st.SearchStrategy[list[str]]:
        flag = st.sampled_from(action.option_strings)
        if action.nargs == 0:
            return flag.map(lambda name: [name])
        likely = st.sampled_from([str(choice) for choice in action.choices] if action.choices else usual(action.dest))
        value = st.sampled_from([likely, likely, NUMBERS, VALUES]).flatmap(lambda chosen: chosen)
        return st.tuples(flag, value).map(lambda pair: [f"{pair[0]}={pair[1]}"])

    actions = [action for action in parser._actions if action.option_strings]
    one = st.one_of([with_value(action) for action in actions if not {*action.option_strings} & {*without}])
    return st.lists(one, max_size=4).map(lambda parts: [argument for part in parts for argument in part])


# As JSON has them, with what Python's reader takes besides.
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, NUMBERS, TEXTS,
              st.sampled_from([10**20, -(10**400), 2**63, 1e300, 5e-324])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def fields_of(kind: type[Any]) -> dict[str, st.SearchStrategy[Any]]:
    """For each setting: a default, something near it, or anything."""
    hints = typing.get_type_hints(kind)
    return {
        field.name: st.one_of(
            JSON,
            st.sampled_from([1, 2, 4, 0.5, "none", "auto", [1, 2], [32, 32], [1, 2, 4], True, None]),
            st.sampled_from(list(field.metadata.get("choices") or ["x"])),
        )
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[field.name])
    }


CONFIGS = st.fixed_dictionaries(
    {}, optional=fields_of(TrainConfig) | {
        "pretrain": JSON | st.fixed_dictionaries({}, optional=fields_of(PretrainConfig)),
        "finetune": JSON | st.fixed_dictionaries({}, optional=fields_of(FinetuneConfig)),
    },
).flatmap(lambda whole: st.sampled_from([*whole.items(), None]).flatmap(
    lambda one: st.sampled_from([whole, dict([one]) if one else {}])
))  # fmt: skip
CONFIG_FILES = st.one_of(
    CONFIGS.map(lambda config: json.dumps(config).encode(errors="surrogatepass")),
    JSON.map(lambda value: json.dumps(value).encode(errors="surrogatepass")),
    st.binary(max_size=40),
    st.tuples(st.sampled_from([b"[", b'{"a":', b'{"seed":', b"9"]), st.integers(1, 6000)).map(lambda p: p[0] * p[1]),
    st.sampled_from(PRESETS).flatmap(lambda name: st.tuples(st.just(json.dumps(preset(name).to_dict()).encode()),
                                                            st.integers(0, 3000), st.binary(max_size=3)))
    .map(lambda p: p[0][: p[1]] + p[2] + p[0][p[1] + len(p[2]):]),
)  # fmt: skip

LINES = st.one_of(
    st.tuples(
        st.sampled_from(
            ["train0.png", "train1.png", "test0.png", "gone.mp4", '"train2.png"', "a b.png", "C:\\clips\\train3.png",
             "", "#x", "path", "../set/train0.png", "/", "train0.png 5", "\ufefftrain1.png", "é\u0301.png", "~x/y",
             "\t"]
        ),
        st.sampled_from([" ", ",", ";", "\t", "  ", ""]),
        st.sampled_from(
            ["0", "1", "2", "-1", "1.0", "0.5", "left", "RIGHT", "lef", "label", "", "9" * 30, "nan", "'0'", '"right"',
             "0 1"]
        ),
    ).map("".join),
    st.text(max_size=20),
)  # fmt: skip
LISTS = st.one_of(
    st.tuples(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r"])).map(
        lambda p: (p[1].join(p[0])).encode(errors="surrogatepass")
    ),
    st.just(b"train0.png 0\ntrain1.png 1\ntrain2.png 0\ntrain3.png 1\n"),
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-16", errors="surrogatepass")),
)
NAMES = ("classes.txt", "train.txt", "test.txt", "val.txt", "pretrain.txt")
SETS = st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, LISTS))


def cases(count: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks, database=None, derandomize=True)


@pytest.fixture(params=[pytest.param(1, id="short"), pytest.param(14, id="long", marks=pytest.mark.full)])
def factor(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_options_of_training(place: Path, factor: int) -> None:
    base = ["--data=set", "--output-dir=out", *SMALL]

    @cases(60 * factor)
    @given(options_of(build_train_parser(), without=("--device",)), st.sampled_from(["all", "pretrain", "finetune"]))
    def run(options: list[str], stage: str) -> None:
        ends(train_lightly, [*base, f"--stage={stage}", *options])

    run()


def test_options_of_prediction(place: Path, factor: int) -> None:
    base = ["--checkpoint=model", "--output=out.csv", "--device=cpu"]

    @cases(30 * factor)
    @given(options_of(build_predict_parser(), without=("--device", "--output")), st.lists(TEXTS, max_size=1))
    def run(options: list[str], clips: list[str]) -> None:
        ends(predict, [*base, *options, "--", "clip.png", *clips])

    run()


def test_contents_of_config_json(place: Path, factor: int) -> None:
    @cases(80 * factor)
    @given(CONFIG_FILES)
    def run(content: bytes) -> None:
        folder = place / "edited"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes(content)
        try:
            ends(train_lightly, ["--resume=edited", "--data=set", "--device=cpu", "--workers=0"])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    run()


def test_contents_of_lists(place: Path, factor: int) -> None:
    @cases(60 * factor)
    @given(SETS, st.sampled_from(["all", "pretrain", "finetune", "evaluate"]))
    def run(files: dict[str, bytes], stage: str) -> None:
        folder = place / "edited_set"
        shutil.copytree(place / "set", folder)
        try:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            more = ["--init-from=model"] if stage == "evaluate" else []
            ends(train_lightly, ["--data=edited_set", "--output-dir=out", *SMALL, f"--stage={stage}", *more])
            for name in files:
                code = _check(folder / name)
                assert code in (0, 1, 2)
        finally:
            shutil.rmtree(folder)

    run()


def _check(path: Path) -> int:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = check([str(path), "--workers=1"])
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]
    assert (code == 2) == any(line.startswith("error: ") for line in lines) and (code != 2 or len(lines) == 1), lines
    return code
