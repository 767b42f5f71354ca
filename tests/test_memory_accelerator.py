"""What an accelerator allocates where it differs, and `predict_peak` on modules of nobody's zoo."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from benchmarks.measured_gpus import predict, t4_row
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as imported_by_name
from torch.utils.checkpoint import checkpoint

from zoo.errors import DoesNotFit, InputError
from zoo.memory import Prediction, predict_peak
from zoo.memory.accelerator import Kind, attention_backend
from zoo.memory.devices import devices, find
from zoo.memory.ledger import Ledger
from zoo.memory.trace import without_storage
from zoo.step import reproducible
from zoo.units import KIB, MIB

HALF, FLOAT, BF16 = torch.float16, torch.float32, torch.bfloat16
T4, A100, HOPPER = Kind(75), Kind(80), Kind(90, multiprocessors=132)


@pytest.fixture
def ampere() -> Iterator[tuple[torch.device, Ledger]]:
    with without_storage("accelerator", kind=A100) as world:
        yield world


def made(ledger: Ledger, run: Callable[[], Any]) -> list[int]:
    """Bytes of every storage that came alive while `run` ran, whatever became of it."""
    before = len(ledger.record.sizes)
    kept = run()
    del kept
    return ledger.record.sizes[before:]


def kept(ledger: Ledger, run: Callable[[], Any]) -> int:
    """Bytes that `run` leaves alive as long as its result is."""
    before = int(ledger.record.deltas().sum())
    result = run()
    after = int(ledger.record.deltas().sum())
    del result
    return after - before


def heads(device: torch.device, dtype: torch.dtype = HALF, count: int = 4, length: int = 96, width: int = 64) -> Any:
    return torch.empty(2, count, length, width, device=device, dtype=dtype, requires_grad=True)


SIZE = 2 * 4 * 96 * 64 * 2
"""Bytes of `heads`."""


# ------------------------------------------------------------------------------------------------------ which kernels


@pytest.mark.parametrize(
    ("kind", "dtype", "mask", "grouped", "expected"),
    [
        (A100, HALF, False, False, "flash"),
        (A100, BF16, False, True, "flash"),
        (A100, FLOAT, False, False, "efficient"),
        (A100, HALF, True, False, "efficient"),
        (T4, HALF, False, False, "efficient"),
        (T4, FLOAT, True, False, "efficient"),
        (T4, BF16, False, False, "math"),  # no bf16 arithmetic before 8.0
        (T4, HALF, False, True, "math"),  # the efficient kernel wants as many key as query heads
        (A100, FLOAT, False, True, "math"),
        (HOPPER, HALF, False, False, "cudnn"),
        (HOPPER, BF16, True, False, "cudnn"),  # which takes masks
        (HOPPER, BF16, False, True, "cudnn"),  # and grouped heads
        (HOPPER, FLOAT, False, False, "efficient"),
    ],
)
def test_the_kernel_of_attention_follows_from_device_type_mask_and_heads(
    kind: Kind, dtype: torch.dtype, mask: bool, grouped: bool, expected: str
) -> None:
    q = torch.empty(1, 4, 32, 64, dtype=dtype, device="meta")
    k = torch.empty(1, 2 if grouped else 4, 32, 64, dtype=dtype, device="meta")
    bias = torch.empty(32, 32, dtype=dtype, device="meta") if mask else None
    assert attention_backend(kind, q, k, k, bias, 0.0, False, grouped) == expected


def test_where_runs_are_to_be_the_same_cudnn_attention_is_left_out() -> None:
    q, mask = (torch.empty(1, 4, 32, width, dtype=HALF, device="meta") for width in (64, 32))
    with reproducible():
        assert attention_backend(HOPPER, q, q, q, None, 0.0, False, False) == "flash"
        assert attention_backend(HOPPER, q, q, q, mask, 0.0, False, False) == "efficient"


@pytest.mark.parametrize(
    ("shape", "dropout", "expected"),
    [((1, 4, 32, 64), 0.125, "cudnn"), ((1, 4, 32, 64), 0.1, "flash"), ((1, 4, 32, 136), 0.0, "flash"),
     ((1, 4, 1, 64), 0.0, "flash"), ((1, 4, 32, 12), 0.0, "flash")],
)  # fmt: skip
def test_cudnn_attention_has_its_own_conditions(shape: tuple[int, ...], dropout: float, expected: str) -> None:
    q = torch.empty(*shape, dtype=HALF, device="meta")
    assert attention_backend(HOPPER, q, q, q, None, dropout, False, False) == expected


def test_efficient_attention_wants_heads_of_whole_16_bytes() -> None:
    halves = torch.empty(1, 4, 32, 12, dtype=HALF, device="meta")
    floats = torch.empty(1, 4, 32, 12, dtype=FLOAT, device="meta")
    mask = torch.empty(32, 32, dtype=HALF, device="meta")
    assert attention_backend(A100, halves, halves, halves, mask, 0.0, False, False) == "math"
    assert attention_backend(A100, floats, floats, floats, None, 0.0, False, False) == "efficient"


def test_cudnn_attention_sums_in_one_workspace() -> None:
    with without_storage("accelerator", kind=HOPPER) as (device, ledger):
        q = heads(device)
        out = F.scaled_dot_product_attention(q, q, q)
        grad = torch.empty_like(out)
        sizes = made(ledger, lambda: torch.autograd.grad(out, q, grad))
    assert 2 * 4 * 96 * (64 + 1) * 4 + 256 in sizes


def test_flash_attention_sums_apart_where_runs_are_to_be_the_same(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    q = heads(device)
    one = 2 * 4 * 128 * 64 * 4
    for times in (1, 14):  # 108 multiprocessors shared by 2 * 4 heads
        with reproducible() if times > 1 else contextlib.nullcontext():
            out = F.scaled_dot_product_attention(q, q, q)
            grad = torch.empty_like(out)
            assert times * one in made(ledger, lambda out=out, grad=grad: torch.autograd.grad(out, q, grad))


def test_a_backend_that_is_switched_off_is_not_chosen() -> None:
    q = torch.empty(1, 4, 32, 64, dtype=HALF, device="meta")
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert attention_backend(A100, q, q, q, None, 0.0, True, False) == "efficient"
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_backend(A100, q, q, q, None, 0.0, True, False) == "math"


@pytest.mark.parametrize("attention", [F.scaled_dot_product_attention, imported_by_name])
def test_flash_attention_keeps_its_output_and_logsumexp_and_no_scores(
    ampere: tuple[torch.device, Ledger], attention: Callable[..., torch.Tensor]
) -> None:
    device, ledger = ampere
    q, k, v = heads(device), heads(device), heads(device)
    # the output, log-sum-exp (batch, heads, length) in fp32, two of 64 bits of random state and one more
    assert kept(ledger, lambda: attention(q, k, v, is_causal=True)) == SIZE + 2 * 4 * 96 * 4 + 16 + 8


def test_efficient_attention_pads_logsumexp_and_converts_boolean_masks() -> None:
    with without_storage("accelerator", kind=T4) as (device, ledger):
        q = heads(device, length=100)
        mask = torch.ones(2, 1, 100, 100, dtype=torch.bool, device=device)
        sizes = made(ledger, lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=mask))
        assert 2 * 100 * 100 * 2 in sizes  # additive, of the query's type
        assert 2 * 100 * 104 * 2 in sizes  # rows of 104: the next multiple of 8
        assert 2 * 4 * 128 * 4 in sizes  # log-sum-exp for 128 queries: the next multiple of 32
        assert 2 * 4 * 100 * 100 * 2 not in sizes


def test_the_plain_product_makes_scores(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    q = heads(device)
    with sdpa_kernel(SDPBackend.MATH):
        assert 2 * 4 * 96 * 96 * 4 in made(ledger, lambda: F.scaled_dot_product_attention(q, q, q))


def test_softmax_of_half_into_float_makes_no_float_copy_of_its_input(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    half, bf16 = (torch.empty(64, 64, device=device, dtype=dtype) for dtype in (HALF, BF16))
    assert made(ledger, lambda: F.softmax(half, -1, dtype=FLOAT)) == [64 * 64 * 4]
    assert made(ledger, lambda: F.softmax(bf16, -1, dtype=FLOAT)) == [64 * 64 * 4] * 2
    assert made(ledger, lambda: F.log_softmax(half, -1, dtype=FLOAT)) == [64 * 64 * 4]


def test_softmax_backward_multiplies_into_a_temporary(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    x = torch.empty(64, 64, device=device, dtype=HALF, requires_grad=True)
    y = F.softmax(x, -1, dtype=FLOAT)
    grad = torch.empty_like(y)
    assert made(ledger, lambda: torch.autograd.grad(y, x, grad)) == [64 * 64 * 2, 64 * 64 * 4]


def test_dropout_keeps_a_mask_of_booleans_and_none_at_all_for_nothing(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    x = torch.empty(64, 64, device=device, requires_grad=True)
    assert kept(ledger, lambda: F.dropout(x, 0.1)) == 64 * 64 * (4 + 1)
    assert kept(ledger, lambda: F.dropout(x, 0.0)) == 0
    assert kept(ledger, lambda: F.dropout(x, 0.1, training=False)) == 0
    assert F.dropout(x, 1.0).shape == x.shape


def test_layer_norm_keeps_statistics_in_float(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    x, weight = (torch.empty(*shape, device=device, dtype=BF16, requires_grad=True) for shape in ((64, 32), (32,)))
    assert kept(ledger, lambda: F.layer_norm(x, (32,), weight)) == 64 * 32 * 2 + 2 * 64 * 4


def test_sorting_for_the_gradient_of_an_embedding_starts_beyond_3072_tokens(
    ampere: tuple[torch.device, Ledger],
) -> None:
    device, ledger = ampere
    table = torch.empty(100, 16, device=device, requires_grad=True)
    for tokens, expected in ((3072, 1), (3073, 6)):
        out = F.embedding(torch.zeros(tokens, dtype=torch.long, device=device), table)
        grad = torch.empty_like(out)
        assert len(made(ledger, lambda out=out, grad=grad: torch.autograd.grad(out, table, grad))) == expected


def test_a_bias_gets_its_gradient_from_partial_sums() -> None:
    """The 32 MiB and 16 bytes that an H200 took for the bias of a layer of 512, of 8192 tokens (torch 2.11)."""
    with without_storage("accelerator", kind=HOPPER) as (device, ledger):
        x = torch.empty(8192, 512, device=device)
        assert made(ledger, lambda: x.sum(0)) == [512 * 4, 32 * MIB, 16]
        assert made(ledger, lambda: x[:512].sum(0)) == [512 * 4], "a block of threads has all rows of its columns"
        assert made(ledger, lambda: x.bfloat16().sum(0))[1:] == [512 * 2, 32 * MIB, 16], "sums are in fp32"
        assert made(ledger, lambda: x.sum()) == [4, 512 * 4, 4], "one number: a partial sum for each block"
        assert made(ledger, lambda: x.sum(1)) == [8192 * 4], "rows are summed within a warp"


@pytest.mark.parametrize("name", ["nll_loss2d", "upsample_bicubic2d", "cumsum"])
def test_what_a_gpu_cannot_repeat_is_refused_before_it_fails_there(
    ampere: tuple[torch.device, Ledger], name: str
) -> None:
    device, _ = ampere
    x = torch.empty(2, 3, 4, 4, device=device, requires_grad=True)

    def run() -> object:
        if name == "nll_loss2d":
            return F.cross_entropy(x, torch.zeros(2, 4, 4, dtype=torch.long, device=device))
        if name == "upsample_bicubic2d":
            return F.interpolate(x, scale_factor=2, mode="bicubic").sum().backward()
        return x.cumsum(-1)

    run()
    with reproducible(), pytest.raises(InputError, match=rf"the model uses {name}.*, which no GPU computes the same"):
        run()
    with reproducible():
        torch.zeros(4, dtype=torch.long, device=device).cumsum(0)


@pytest.mark.parametrize(("kind", "size"), [(T4, 8.125), (A100, 8.125), (Kind(90), 32), (Kind(120), 8.125)])
def test_each_thread_that_multiplies_gets_one_workspace(kind: Kind, size: float) -> None:
    with without_storage("accelerator", kind=kind) as (device, ledger):
        x = torch.empty(8, 8, device=device, requires_grad=True)
        for _ in range(2):
            (x @ x).sum().backward()
        found = [ledger.record.sizes[i] for i, label in ledger.record.labels.items() if label == "workspace"]
    assert found == [size * MIB] * 2


def test_workspaces_are_those_that_the_environment_asks_for() -> None:
    with reproducible():
        assert T4.workspace_bytes == HOPPER.workspace_bytes == 8 * 4096 * KIB
    assert T4.workspace_bytes == 8.125 * MIB


def test_gradients_of_one_tensor_add_up_in_place(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    x = torch.empty(256, 256, device=device, requires_grad=True)
    h = x * 1
    loss = (h * 2).sum() + (h * 3).sum() + (h * 4).sum()
    # each branch has its gradient, and the first takes in the others; x * 1 makes one more
    assert [size for size in made(ledger, lambda: torch.autograd.grad(loss, x)) if size > 4 * KIB] == [256 * KIB] * 4


def test_optimizers_take_their_foreach_way(ampere: tuple[torch.device, Ledger]) -> None:
    device, ledger = ampere
    weights = [nn.Parameter(torch.empty(512, 512, device=device)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.empty_like(weight)
    torch.optim.AdamW(weights).step()
    # two states for each, and all three denominators at once
    assert max(ledger.record.peaks().values()) >= (3 * 2 + 3 * 2 + 3) * MIB


# ------------------------------------------------------------------------------------------------------------- values


def test_positions_and_masks_are_asked_for_their_values(ampere: tuple[torch.device, Ledger]) -> None:
    device, _ = ampere
    positions = torch.arange(8, device=device)[None]
    assert bool((torch.diff(positions) == 1).all())
    mask = torch.ones(2, 8, dtype=torch.bool, device=device)
    assert bool(mask.all())
    mask[1, 5:] = False
    assert not bool(mask.all())
    assert int(mask.sum()) == 13


def test_what_depends_on_unknown_values_is_answered_with_no(ampere: tuple[torch.device, Ledger]) -> None:
    device, _ = ampere
    x = torch.empty(8, device=device)
    assert not bool((x > 0).any())
    counts = torch.ones(8, device=device)
    counts += x
    assert counts.sum().item() == 0


def test_following_values_leaves_the_random_numbers_of_the_caller_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with without_storage("accelerator") as (device, _):
        torch.randint(0, 9, (4,), device=device)
    assert torch.rand(()) == expected


# ------------------------------------------------------------------------------------------------------- predict_peak


class Tower:
    """A stranger's model: not a Hugging Face one, its modules in attributes."""

    def __init__(self, device: torch.device, depth: int = 3, saving: bool = False) -> None:
        self.device, self.saving = device, saving
        with device:
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(depth))
        self.optimizer = torch.optim.AdamW(self.blocks.parameters())


def step(tower: Tower, phase: Any) -> None:
    x = torch.randn(2048, 512, device=tower.device, requires_grad=True)
    with phase("forward"):
        for block in tower.blocks:
            x = checkpoint(block, x, use_reentrant=False) if tower.saving else block(x)
        loss = x.square().mean()
    with phase("backward"):
        loss.backward()
    with phase("optimizer"):
        tower.optimizer.step()
        tower.optimizer.zero_grad()


def test_a_prediction_adds_up() -> None:
    found = predict_peak(Tower, step, "t4")
    assert isinstance(found, Prediction)
    assert set(found.phases) == {"forward", "backward", "optimizer"}
    assert found.allocated == found.phases[found.phase].allocated == sum(found.categories.values())
    assert found.reserved >= found.allocated
    assert found.process == found.reserved + round(140.875 * MIB)
    assert found.interval[0] < found.process < found.interval[1]
    weights = 3 * (512 * 512 + 512) * 4
    assert found.categories["parameters"] == weights
    assert found.categories["optimizer"] == 2 * weights
    assert found.categories["workspace"] == 2 * 8.125 * MIB
    assert found.fits
    assert "t4: allocated" in str(found)


def test_recomputation_and_more_memory_are_seen() -> None:
    plain = predict_peak(lambda device: Tower(device, 12), step, "a100-80gb")
    saving = predict_peak(lambda device: Tower(device, 12, saving=True), step, "a100-80gb")
    # of three tensors for each block (product, activation; the input is the last one's output) one remains
    assert plain.allocated - saving.allocated >= 10 * 4 * MIB


def test_expandable_segments_reserve_less() -> None:
    plain = predict_peak(lambda device: Tower(device, 12), step, "t4")
    expandable = predict_peak(lambda device: Tower(device, 12), step, "t4", expandable_segments=True)
    assert expandable.reserved <= plain.reserved


def test_a_limit_that_is_too_small_says_what_found_no_room() -> None:
    with pytest.raises(DoesNotFit, match=r"an allocation of .* finds no room"):
        predict_peak(Tower, step, "t4", limit=32 * MIB)


def test_a_prediction_for_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match=r'device "cpu" is no GPU; name one, for example "t4"'):
        predict_peak(Tower, step, "cpu")


def test_a_step_without_phases_is_refused() -> None:
    with pytest.raises(InputError, match="step entered no phase; write"):
        predict_peak(Tower, lambda tower, phase: None, "t4")


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps is 0; at least 1 is needed"):
        predict_peak(Tower, step, "t4", steps=0)


def test_autocast_is_refused() -> None:
    def cast(tower: Tower, phase: Any) -> None:
        with torch.autocast("cuda", dtype=HALF):
            step(tower, phase)

    with pytest.raises(InputError, match=r"torch\.autocast is on, and its casts cannot be"):
        predict_peak(Tower, cast, "t4")
    with torch.autocast("cpu"):  # afterwards it works as before
        assert torch.is_autocast_enabled("cpu")


def test_autocast_that_was_on_before_is_refused() -> None:
    torch.set_autocast_enabled("cuda", True)
    try:
        with pytest.raises(InputError, match=r"torch\.autocast is on, and its casts cannot be"):
            predict_peak(Tower, step, "t4")
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_every_known_gpu_has_a_kind() -> None:
    kinds = {name: Kind.of(device) for name, device in devices().items() if device.vendor != "host"}
    assert kinds["t4"].capability == 75
    assert kinds["rtx-a6000-48gb"].capability == 86
    assert kinds["rtx-4060-ti-16gb"].capability == 89
    assert kinds["rtx-6000-ada-48gb"].capability == 89
    assert kinds["mi300x"].amd
    for name, kind in kinds.items():
        assert (kind.capability >= 80) == (find(name).bf16 is not None), name


def test_entering_and_leaving_the_world_restores_what_it_replaces() -> None:
    x = torch.empty(4, 4, device="meta", dtype=HALF)
    with without_storage("accelerator"):
        pass
    with without_storage("meta") as (_, ledger):
        assert made(ledger, lambda: F.softmax(x, -1, dtype=FLOAT)) == [64, 64]  # its input is converted before


# ------------------------------------------------------------------------------------------------------ published runs

TINYLLAMA_ON_T4 = {
    "run_id": "", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "hidden": "2048", "layers": "22", "heads": "32",
    "kv_heads": "4", "head_dim": "64", "ffn": "5632", "vocab": "32000", "tied": "False", "quant": "none",
    "double_quant": "False", "compute_dtype": "fp16", "lora_r": "32", "lora_targets": "q_proj k_proj v_proj o_proj",
    "grad_ckpt": "non-reentrant", "batch": "2", "seq": "1024", "resident_before_step_mib": "2134.5517578125",
}  # fmt: skip
"""fitcheck-llm 0.3.1 sdist, ``data/measurements/t4-sweep-2026-09-15.json`` (MIT), torch 2.14 on a Tesla T4."""


@pytest.mark.parametrize(
    ("attention", "forward", "backward", "optimizer", "reserved"),
    [
        ("eager", 3048.86572265625, 3518.083984375, 2429.31787109375, 4226),
        ("sdpa", 3045.86572265625, 3287.833984375, 2430.31787109375, 3532),
    ],
)
def test_a_published_run_is_met(
    attention: str, forward: float, backward: float, optimizer: float, reserved: float
) -> None:
    phases = {"forward": forward, "backward": backward, "optimizer": optimizer}
    row = t4_row(
        {
            **TINYLLAMA_ON_T4, "attn": attention, "peak_allocated_mib": str(backward),
            "peak_reserved_mib": str(reserved), **{f"peak_{name}_mib": str(size) for name, size in phases.items()},
        }
    )  # fmt: skip
    found = predict(row.run)
    # 0.1 %: small tensors that the source's script keeps beside the model are not known
    assert {name: peak.allocated / MIB for name, peak in found.phases.items()} == pytest.approx(phases, rel=1e-3)
    assert found.resident / MIB == pytest.approx(row.resident, rel=1e-3)
    assert found.reserved / MIB == pytest.approx(reserved, rel=1e-2)
    assert found.phase == row.phase
