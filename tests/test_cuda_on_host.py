"""The CUDA kernels executed on the CPU, thread by thread, and shown to depend on every fragment and barrier.

The kernel bodies are those that nvcc compiles; only the primitives under them are others (csrc/cuda/host/).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_on_host import COMPILER, CSRC, compile_sources, link, load, mutated, sources

from mae_dfer_kernels import layer_norm, region_attention, residual_layer_norm
from mae_dfer_kernels.cuda import device
from mae_dfer_kernels.cuda import exchange as cuda_exchange
from mae_dfer_kernels.reference import exchange as exchange_reference
from mae_dfer_kernels.reference import region_attention as reference
from mae_dfer_kernels.reference import residual_layer_norm as norm_reference

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler (c++, g++ or clang++)")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuda_on_host")
    compile_sources(sources(), CSRC, folder)
    return folder


@pytest.fixture(scope="session")
def host(objects: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return load(link(objects, tmp_path_factory.mktemp("module")))


def use(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """From here on backend `cuda` takes tensors on the CPU and runs them by ``module``."""
    monkeypatch.setattr(device, "library", lambda: module)
    monkeypatch.setattr(device, "takes", lambda place: place.type == "cpu")


def complain(found: list[torch.Tensor], exact: list[torch.Tensor], plain: list[torch.Tensor]) -> list[str]:
    """Of what is less exact than twice plain PyTorch in the same dtype."""
    complaints = []
    for number, (ours, right, eager) in enumerate(zip(found, exact, plain, strict=True)):
        error = (ours.double() - right).square().mean().sqrt()
        allowed = 2 * (eager.double() - right).square().mean().sqrt()
        allowed += torch.finfo(ours.dtype).eps / 8 * right.square().mean().sqrt() if right.any() else 1e-9
        if not error <= allowed:
            complaints.append(f"result {number}: error {error:.3g}, allowed {allowed:.3g}")
    return complaints


class Case:
    """A call with what float64 and plain PyTorch make of it."""

    def __init__(self, dtype: str, regions: int, tokens: int, heads: int, head_dim: int, dropout_p: float = 0.0,
                 magnitude: float = 1.0) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(tokens)
        shape = (regions, tokens, 3 * heads * head_dim)
        self.qkv = (magnitude * torch.randn(shape, generator=generator)).to(DTYPES[dtype])
        self.grad = torch.randn((*shape[:2], heads * head_dim), generator=generator).to(DTYPES[dtype])
        self.heads, self.dropout_p, self.seed = heads, dropout_p, 2**40 + 3
        self.scale = head_dim**-0.5
        self.exact, self.plain = self._reference(torch.float64), self._reference(DTYPES[dtype])

    def _reference(self, dtype: torch.dtype) -> list[torch.Tensor]:
        qkv = self.qkv.to(dtype).requires_grad_()
        out = reference.region_attention(qkv, self.heads, self.scale, self.dropout_p, self.seed)
        return [out.detach().double(), torch.autograd.grad(out, qkv, self.grad.to(dtype))[0].double()]

    def run(self) -> list[torch.Tensor]:
        qkv = self.qkv.detach().requires_grad_()
        out = region_attention(qkv, self.heads, dropout_p=self.dropout_p, seed=self.seed, backend="cuda")
        return [out.detach(), torch.autograd.grad(out, qkv, self.grad)[0]]

    def complaints(self) -> list[str]:
        return complain(self.run(), self.exact, self.plain)


CASES = {
    "tile-1": ("bf16", 9, 11, 2, 64),  # nine regions: the second block of a head holds one
    "tile-1-one-token": ("fp16", 3, 1, 1, 32),
    "tile-3": ("bf16", 3, 41, 1, 64),
    "tile-4": ("fp16", 1, 51, 2, 32),
    "tile-7": ("bf16", 1, 101, 2, 64),
    "tile-8": ("fp16", 1, 128, 1, 64),
    "loop": ("bf16", 1, 150, 1, 64),
    "loop-16-channels": ("fp16", 1, 33, 2, 16),
    "loop-128-channels": ("bf16", 1, 65, 1, 128),
    "loop-fp32": ("fp32", 2, 41, 2, 32),
    "loop-fp32-128-channels": ("fp32", 1, 70, 1, 128),
    "loop-dropout": ("bf16", 2, 70, 2, 32, 0.3),
    "loop-fp32-dropout": ("fp32", 1, 37, 1, 16, 0.3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_less_exact_than_plain_pytorch(monkeypatch: pytest.MonkeyPatch, host: ModuleType, case: tuple) -> None:
    use(monkeypatch, host)
    chosen = Case(*case)
    for seed in range(2):  # orders of threads
        host.seed(seed)
        assert not chosen.complaints()


def test_large_logits_stay_finite(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    for tokens in (41, 201):
        assert all(tensor.isfinite().all() for tensor in Case("bf16", 1, tokens, 1, 64, magnitude=60.0).run())


def test_same_bits_in_any_order_of_threads(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    for case in (CASES["tile-3"], CASES["loop"]):
        chosen, results = Case(*case), []
        for seed in (0, 1, 2):
            host.seed(seed)
            results.append(chosen.run())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strides_and_alignment(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    chosen = Case("bf16", 2, 11, 2, 32)
    right = chosen.run()
    wide = torch.full((11, 2, 3 * 64 + 8), float("nan"), dtype=torch.bfloat16)
    wide[..., :-8] = chosen.qkv.transpose(0, 1)
    for view in (wide[..., :-8].transpose(0, 1), torch.cat([chosen.qkv.flatten()[:1], chosen.qkv.flatten()])[1:]):
        chosen.qkv = view.view(2, 11, -1) if view.dim() == 1 else view
        assert all(torch.equal(a, b) for a, b in zip(right, chosen.run(), strict=True))


def test_less_shared_memory_takes_the_loop(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    try:
        host.limit_shared_memory(99 * 1024)  # of the smaller GPUs
        for case in ("tile-8", "tile-7", "loop-fp32-128-channels"):
            assert not Case(*CASES[case]).complaints()
    finally:
        host.limit_shared_memory(227 * 1024)


class NormCase:
    """Residual + LayerNorm likewise: sum, normed and the gradients of x, update, weight and bias.

    ``form``: "scaled", "plain" or, without an update, "alone": normed and the gradients of x, weight and bias.
    """

    def __init__(self, dtypes: tuple[str, str, str], shape: tuple[int, int, int], form: str = "scaled") -> None:
        generator = torch.Generator().manual_seed(shape[2])

        def draw(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(size, generator=generator).to(dtype)

        x_dtype, update_dtype, self.out_dtype = (DTYPES[name] for name in dtypes)
        self.alone = form == "alone"
        update = [] if self.alone else [draw(shape, update_dtype)]
        self.tensors = (draw(shape, x_dtype) + 2, *update, draw(shape[2:], torch.float32) + 1,
                        draw(shape[2:], torch.float32))  # fmt: skip
        self.grads = (draw(shape, x_dtype), draw(shape, self.out_dtype))[self.alone :]
        self.scale = torch.tensor([0.0, 1.25, 0.5])[: shape[0]] if form == "scaled" else None
        self.exact, self.plain = self._reference(True), self._reference(False)

    def _results(self, call: Callable[..., tuple[torch.Tensor, ...]], exact: bool) -> list[torch.Tensor]:
        leaves = [tensor.to(torch.float64 if exact else tensor.dtype).requires_grad_() for tensor in self.tensors]
        outputs = call(*leaves)
        grads = [grad.to(output) for grad, output in zip(self.grads, outputs, strict=True)]
        return [tensor.detach() for tensor in (*outputs, *torch.autograd.grad(outputs, leaves, grads))]

    def _reference(self, exact: bool) -> list[torch.Tensor]:
        scale = self.scale.double() if exact and self.scale is not None else self.scale
        out_dtype = torch.float64 if exact else self.out_dtype

        def call(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
            *update, weight, bias = rest
            added = update[0] if update else None
            return norm_reference.residual_layer_norm(x, added, scale, weight, bias, 1e-6, out_dtype)[self.alone :]

        return self._results(call, exact)

    def run(self) -> list[torch.Tensor]:
        def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if self.alone:
                return (layer_norm(*tensors, out_dtype=self.out_dtype, backend="cuda"),)
            return residual_layer_norm(*tensors, row_scale=self.scale, out_dtype=self.out_dtype, backend="cuda")

        return self._results(call, False)


@pytest.mark.parametrize("channels", [8, 200, 512, 768, 1024, 1040])
@pytest.mark.parametrize("dtypes", [("fp32", "bf16", "bf16"), ("bf16", "bf16", "bf16"), ("fp16", "fp32", "fp32")],
                         ids="-".join)  # fmt: skip
@pytest.mark.parametrize("alone", [False, True], ids=["residual", "alone"])
def test_residual_layer_norm(
    monkeypatch: pytest.MonkeyPatch, host: ModuleType, channels: int, dtypes: tuple[str, str, str], alone: bool
) -> None:
    use(monkeypatch, host)
    case = NormCase(dtypes, (3, 5, channels), "alone" if alone else "plain" if channels == 512 else "scaled")
    found = case.run()
    assert not complain(found, case.exact, case.plain)
    host.seed(1)
    assert all(torch.equal(a, b) for a, b in zip(found, case.run(), strict=True))


class ExchangeCase:
    """The exchange of rows likewise: out and the gradients of x, keys, key_bias, values, out_bias and, where one of
    that dtype is added to x, ``update``.

    ``shape``: clips, groups a clip, rows, channels, heads, representative tokens.
    """

    def __init__(self, dtype: str, shape: tuple[int, int, int, int, int, int], scaled: bool = True,
                 eps: float = 1e-6, front: int = 0, update: str = "") -> None:  # fmt: skip
        clips, groups, rows, channels, self.heads, context = shape
        self.eps, self.front = eps, front
        generator = torch.Generator().manual_seed(sum(shape))

        def draw(*size: int, spread: float = 1.0) -> torch.Tensor:
            return torch.randn(size, generator=generator) * spread

        pairs = self.heads * context
        self.tensors = ((draw(clips * groups, rows, channels) + 2).to(DTYPES[dtype]),
                        draw(clips, pairs, channels, spread=1.5 * channels**-0.5), draw(clips, pairs),
                        draw(clips, pairs, channels), draw(channels))  # fmt: skip
        self.update_scale = torch.linspace(0.5, 1.5, clips * groups) if update else None
        if update:
            self.tensors += (draw(*self.tensors[0].shape).to(DTYPES[update]),)
        self.grad = draw(*self.tensors[0].shape).to(DTYPES[dtype])
        self.scale = torch.linspace(1.25, 0.5, clips) if scaled else None
        self.exact, self.plain = self._reference(torch.float64), self._reference(DTYPES[dtype])

    def _results(self, call: Callable[..., torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        leaves = [tensor.to(dtype or tensor.dtype) for tensor in self.tensors[:5]]
        leaves += [update.double() if dtype == torch.float64 else update for update in self.tensors[5:]]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        x = leaves[0]
        front = torch.ones(x.shape[0], self.front, x.shape[2], dtype=x.dtype) if self.front else None
        update = leaves[5] if len(leaves) == 6 else None
        given = (*leaves[:5], self.scale, update, self.update_scale, front)
        out = call(*given, self.heads, self.eps, x.dtype)[:, self.front :]
        grads = torch.autograd.grad(out, leaves, self.grad.to(out.dtype))
        return [tensor.detach() for tensor in (out, *grads)]

    def _reference(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """With operands of one dtype, as the kernels multiply them."""
        return self._results(exchange_reference.exchange_rows, dtype)

    def run(self) -> list[torch.Tensor]:
        operator = torch.ops.mae_dfer_kernels.exchange_rows
        torch.use_deterministic_algorithms(True)  # makes torch fill new memory with NaN
        try:
            return self._results(lambda *arguments: operator(*arguments, "cuda"))
        finally:
            torch.use_deterministic_algorithms(False)

    def complaints(self) -> list[str]:
        return complain(self.run(), self.exact, self.plain)


EXCHANGES = {
    "one-row": ("bf16", (2, 1, 1, 8, 1, 1), False),
    "no-eps": ("bf16", (2, 1, 5, 24, 2, 3), True, 0.0),  # nor may rows beyond the last divide by 0
    "one-representative": ("fp16", (2, 2, 9, 40, 3, 1)),
    "three": ("fp32", (2, 3, 7, 24, 2, 3)),
    "behind-others": ("bf16", (2, 3, 7, 24, 2, 3), True, 1e-6, 2),
    "updated": ("fp32", (2, 3, 7, 24, 2, 3), True, 1e-6, 2, "bf16"),
    "base": ("bf16", (1, 4, 21, 512, 8, 8)),  # two blocks of rows, four slices of channels
    "five-fp32": ("fp32", (1, 1, 81, 200, 4, 5), False),
    "passes": ("fp16", (2, 1, 20, 136, 5, 20)),
    "long-head": ("bf16", (1, 1, 18, 72, 2, 100)),
    "long-head-fp32": ("fp32", (2, 1, 5, 40, 1, 129)),
    "long-rows-fp32": ("fp32", (4, 1, 9, 2048, 1, 2)),
}


@pytest.mark.parametrize("case", EXCHANGES.values(), ids=EXCHANGES.keys())
def test_exchange(monkeypatch: pytest.MonkeyPatch, host: ModuleType, case: tuple) -> None:
    use(monkeypatch, host)
    chosen = ExchangeCase(*case)
    host.seed(0)
    found = chosen.run()
    assert not complain(found, chosen.exact, chosen.plain)
    host.seed(1)  # another order of threads
    assert all(torch.equal(a, b) for a, b in zip(found, chosen.run(), strict=True))


def test_exchange_whose_rows_are_not_split(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    monkeypatch.setattr(cuda_exchange, "_BLOCKS", 1)
    assert not ExchangeCase("bf16", (1, 1, 81, 72, 2, 8)).complaints()


def test_exchange_of_large_and_far_numbers(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    case = ExchangeCase("fp32", (2, 2, 7, 40, 2, 4))
    x, keys, *others = case.tensors
    case.tensors = (x + 1000, keys * 300, *others)
    case.exact, case.plain = case._reference(torch.float64), case._reference(torch.float32)
    assert not case.complaints()


def test_exchange_of_any_strides(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    case = ExchangeCase("bf16", (2, 3, 7, 24, 2, 3))
    (x, *others), right = case.tensors, case.run()
    wide = torch.full((6, 8, 32), float("nan"), dtype=torch.bfloat16)  # beside the representative token of its region
    wide[:, 1:, 8:] = x
    case.grad = case.grad.transpose(0, 2).contiguous().transpose(0, 2)
    for view in (wide[:, 1:, 8:], torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)):
        case.tensors = (view, *others)
        # `detach` keeps the strides, and the results are written over NaN.
        assert all(torch.equal(a, b) for a, b in zip(right, case.run(), strict=True))


def test_exchange_keeps_what_is_not_a_number_to_its_row(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)
    case = ExchangeCase("bf16", (2, 1, 19, 40, 2, 3))
    clean = case.run()[0]
    case.tensors[0][1, 4, 7] = float("nan")
    spoilt = case.run()[0]
    assert spoilt[1, 4].isnan().all()
    clean[1, 4] = spoilt[1, 4] = 0.0
    assert torch.equal(clean, spoilt)


def test_exchange_says_what_it_cannot_run(monkeypatch: pytest.MonkeyPatch, host: ModuleType) -> None:
    use(monkeypatch, host)

    def reason(channels: int, pairs: int, dtype: torch.dtype = torch.float32) -> str:
        return cuda_exchange.unavailable(torch.zeros(1, 2, channels, dtype=dtype), pairs) or ""

    assert reason(2048, 256) == reason(2048, 64, torch.bfloat16) == ""
    assert "C = 12 channels" in reason(12, 8) and "C = 2056" in reason(2056, 8)
    assert "J = 257" in reason(64, 257) and "cast it to float32" in reason(64, 8, torch.float64)
    try:
        host.limit_shared_memory(99 * 1024)  # of the smaller GPUs
        assert reason(1024, 64) == reason(2048, 64, torch.bfloat16) == ""
        assert "C = 2048" in reason(2048, 64) and "101376" in reason(2048, 64)
        assert not ExchangeCase("fp32", (1, 1, 9, 1024, 1, 2)).complaints()
    finally:
        host.limit_shared_memory(227 * 1024)


SWAPS = {
    "left-fragment": ("cuda/fragments.cuh", "load_matrices(a, piece(row + lane % 16, 2 * step + lane / 16));",
                      "load_matrices(a, piece(row + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));", 0),
    "right-fragment": ("cuda/fragments.cuh", "b[0][1] = words[1];", "b[0][1] = words[2];", 0),
    "transposed-right-fragment": ("cuda/fragments.cuh", "b[1][0] = words[2];", "b[1][0] = words[3];", 1),
    "probabilities-to-fragment": ("cuda/fragments.cuh", "a[2 * half + 1] = pack(E(), c[2 * step + half][2]",
                                  "a[2 * half + 1] = pack(E(), c[2 * step + half][1]", 0),
    "transposed-left-fragment": ("cuda/region_attention_tile.cuh", "(key / 8 + lane / 8 % 2) * 16",
                                 "(key / 8 + lane / 16) * 16", 0),
    "fp32-fragment": ("cuda/fragments.cuh", "a[1] = float_to_bits(c[step][2]);", "a[1] = float_to_bits(c[step][1]);",
                      0),
    "fp32-remainder": ("cuda/fragments.cuh", "multiply_add_tf32(part, a_low, b_high);", "", 0),
    "exchange-transposed-scores": ("cuda/exchange_pairs.cuh", "turned = matrix % 2 * 2 + matrix / 2", "turned = matrix",
                                   0),
    "exchange-rows-of-statistics": ("cuda/exchange_pairs.cuh", "2 * p + 8 * i + e :", "4 * p + 2 * i + e :", 0),
    "exchange-rows-beyond-the-last": ("cuda/exchange_tile.cuh", "found.inverse[half] = inside ? ",
                                      "found.inverse[half] = true ? ", 0),
    "fp32-exchange-transposed-scores": ("cuda/exchange_pairs.cuh", "16 * (2 * p + i / 2)", "16 * (p + i / 2 * 4)", 0),
}  # fmt: skip


def removals() -> dict[str, tuple[str, str, str, int]]:
    """Every barrier and every wait of the kernels, each taken out."""
    found = {}
    kernels = (path for name in ("*_attention_*", "exchange_*") for path in sorted(CSRC.glob(f"cuda/{name}.cuh")))
    for path in (*kernels, CSRC / "cuda/residual_layer_norm.cu"):
        text = path.read_text()
        for statement in sorted(set(re.findall(r"\b(?:sync_block|sync_warp|copy_wait<\d>)\(\);", text))):
            for number in range(text.count(statement)):
                name = f"{path.stem}-{statement.split('(')[0]}-{number}"
                found[name] = (f"cuda/{path.name}", statement, "", number)
    return found


MUTATIONS = SWAPS | removals()


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_change_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, objects: Path, tmp_path: Path, name: str
) -> None:
    fp32, norm, exchanges = name.startswith("fp32"), name.startswith("residual"), "exchange" in name
    operator = "exchange" if exchanges else "region_attention"
    source = "residual_layer_norm" if norm else f"{operator}_{'f32' if fp32 else 'bf16'}"
    module = mutated(objects, tmp_path, MUTATIONS[name], f"cuda/{source}.cu")
    use(monkeypatch, module)
    kinds = [("bf16", 1, 101, 1, 64), ("bf16", 3, 41, 1, 64), ("bf16", 1, 70, 1, 16)]
    kinds = [("fp32", 1, 41, 1, 32)] if fp32 else kinds
    cases: list[Case | NormCase | ExchangeCase] = [Case(*kind) for kind in kinds]
    if norm:
        cases = [NormCase(("fp32", "bf16", "bf16"), (3, 9, 64))]
    if exchanges:
        monkeypatch.setattr(cuda_exchange, "_BLOCKS", 1)  # one block walks through all rows of a clip
        cases = [ExchangeCase("fp32" if fp32 else "bf16", (1, 1, 75, 136, 2, 8), eps=0.0)]
    for seed in range(20):
        module.seed(seed)
        for case in cases:
            try:
                if complain(case.run(), case.exact, case.plain):
                    return
            except RuntimeError as error:  # the host machine's: threads that wait for ever, copies never awaited
                assert "thread" in str(error)
                return
    pytest.fail(f"{name}: nothing noticed")
