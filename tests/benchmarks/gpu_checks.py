"""What only a GPU can show: techniques change no bit there either, budgets are kept, and a run that is out of memory
goes on.

``python -m tests.benchmarks.gpu_checks`` on a machine with a GPU. Every check prints what it saw; exit code 1 if one
fails. The data are peptides that are drawn here, the models small and real.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.small_models import batches, clipping, defaults, loads, run_steps, small, task_of
from zoo.resolve import load_job
from zoo.step import build, reproducible
from zoo.techniques import registry
from zoo.techniques.adapter import LoRA
from zoo.techniques.offload import Activations, Weights
from zoo.techniques.precision import BF16, FP32
from zoo.training import run
from zoo.training.finished import Run
from zoo.training.values import loader_of
from zoo.units import GIB, MIB

GPU = torch.device("cuda")
LENGTHS = (17, 9, 30, 12)
MODELS = ("esm2_t6_8m", "rxnmapper_albert")


def same_bits() -> Iterator[str]:
    """Three steps with dropout, with every option that says ``bitwise``, beside three without it."""
    examples: dict[Any, dict[str, Any]] = {Activations: {"smallest": 1}, Weights: {"smallest": 1}}
    for name in MODELS:
        card = small(name, dropout=0.1)
        task = task_of("sequence_regression", card)
        published = build(
            card, task, defaults(), torch.device("cpu"), load=loader_of(card, "random", 0)
        ).model.state_dict()
        steps = [batches(task, LENGTHS, 3, 1, seed=seed) for seed in range(3)]
        for precision in (FP32(), BF16()):
            for key, options in registry().items():
                for option in (o for o in options[1:] if o.exactness == "bitwise"):
                    adapter = {"adapter": LoRA(rank=2, dropout=0.1)} if option is Weights else {}
                    plain = {**adapter, "precision": precision}
                    chosen = {**plain, key: option(**examples.get(option, {}))}
                    norm = clipping(tuple(chosen.values()))
                    one, other = (
                        run_steps(
                            card, task, defaults(**these), steps, device=GPU, max_grad_norm=norm, load=loads(published)
                        )
                        for these in (plain, chosen)
                    )
                    pairs = [*zip(one.losses, other.losses, strict=True)]
                    for mine, its in zip(one.weights, other.weights, strict=True):
                        pairs += [(mine[n], its[n]) for n in mine]
                    pairs = [(a.cpu(), b.cpu()) for a, b in pairs]
                    worst = max(float((a.float() - b.float()).abs().max()) for a, b in pairs)
                    same = all(torch.equal(a, b) for a, b in pairs)
                    steps_elsewhere = option.key == "offload" and option.name == "optimizer"
                    said = (
                        f"{name} {precision.name} {key} {option.name}: {'same bits' if same else f'off by {worst:.1e}'}"
                    )
                    if not same and not (steps_elsewhere and worst < 1e-5):
                        raise AssertionError(said)
                    yield said


def recipe(folder: Path, **changes: Any) -> Path:
    """A recipe on drawn peptides."""
    draw = random.Random(0)
    with (folder / "peptides.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "value", "part"])
        for i in range(160):
            text = "".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(126 if i == 0 else draw.randint(60, 126)))
            part = "train" if i < 128 else "valid" if i < 144 else "test"
            writer.writerow([text, f"{text.count('K') / len(text):.4f}", part])
    made: dict[str, Any] = {
        "name": "gpu", "domain": "biology", "model": "esm2_t12_35m", "checkpoint": "random",
        "task": "sequence_regression",
        "data": {"path": str(folder / "peptides.csv"), "columns": {"input": "sequence", "target": "value"},
                 "split": {"method": "column", "column": "part"}},
        "budget": {"gpu": "auto"},
        "techniques": {"precision": "fp32", "adapter": "full", "checkpointing": "none"},
        "train": {"max_steps": 8, "global_batch_size": 32, "learning_rate": 1e-4, "evaluate_every": 4,
                  "max_grad_norm": 1.0},
    }  # fmt: skip
    path = folder / "gpu.yaml"
    path.write_text(yaml.safe_dump(made | changes, sort_keys=False))
    return path


def _train(folder: Path, name: str, overrides: Sequence[str] = (), **how: Any) -> dict[str, Any]:
    job = load_job(recipe(folder), list(overrides))
    return run.train(job, output=folder / name, **how).summary


def memory_of(summary: dict[str, Any]) -> str:
    memory = summary["memory"]
    told, found = memory["predicted_bytes"], memory["measured_bytes"]
    parts = [f"{p} {told[p] / MIB:.1f} / {found[p] / MIB:.1f} MiB ({told[p] / found[p] - 1:+.2%})" for p in found]
    reserved = memory["reserved_bytes"]
    return "; ".join([*parts, f"reserved {reserved['predicted'] / MIB:.0f} / {reserved['measured'] / MIB:.0f} MiB"])


def whole_runs() -> Iterator[str]:
    """`zoo train` on the GPU of this machine: planned, trained, tested; the same to the bit when done again."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = _train(folder, "one")
        yield f"micro-batch {first['micro_batch_size']}, {memory_of(first)}"
        again = _train(folder, "two")
        assert first["metrics"] == again["metrics"], (first["metrics"], again["metrics"])
        yield f"a second run has the same metrics: {again['metrics']['test']}"
        one, two = ((folder / n / "model" / "model.safetensors").read_bytes() for n in ("one", "two"))
        assert one == two
        yield "and the same weights to the bit"
        found = Run.open(folder / "one").evaluate()
        yield f"evaluated again: {found['test']}"


def kept_budgets() -> Iterator[str]:
    """Runs inside budgets that are exactly what their plans need: nothing runs out, nothing more is reserved."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loose = run.plan(load_job(recipe(folder)))[0].chosen
        for number, division in enumerate((1, 2, 8)):
            techniques = [] if number else ["techniques.precision=auto", "techniques.checkpointing=auto"]
            budget = (loose.needed_bytes - loose.footprint.process) + loose.footprint.process // division
            overrides = [f"budget={{device: {budget}}}", *techniques]
            decision = run.plan(load_job(recipe(folder), overrides))[0]
            if not decision.fits:
                budget = decision.chosen.needed_bytes
                overrides = [f"budget={{device: {budget}}}", *techniques]
            summary = _train(folder, f"run{number}", overrides)
            assert not summary["ran_out_of_memory"], summary["ran_out_of_memory"]
            reserved = summary["memory"]["reserved_bytes"]["measured"]
            assert reserved <= budget
            yield f"budget {budget / GIB:.2f} GiB, micro-batch {summary['micro_batch_size']}, {memory_of(summary)}"


def going_on() -> Iterator[str]:
    """A device with less than the plan believes: the step comes again in smaller micro-batches, to the same result."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = _train(folder, "whole")
        reserved = whole["memory"]["reserved_bytes"]["measured"]
        plain = run.within

        @contextlib.contextmanager
        def smaller(device: torch.device, limit: int, *, growing: bool) -> Iterator[None]:
            with plain(device, reserved * 7 // 10, growing=growing):
                yield

        run.within = smaller  # type: ignore[assignment]
        try:
            less = _train(folder, "less")
        finally:
            run.within = plain
        assert less["ran_out_of_memory"], "memory did not run out"
        yield f"{less['ran_out_of_memory']}"
        yield f"micro-batch {whole['micro_batch_size']} -> {less['micro_batch_size']}"
        a, b = whole["metrics"]["test"]["rmse"], less["metrics"]["test"]["rmse"]
        assert less["steps"] == whole["steps"]
        assert abs(a / b - 1) < 1e-3, (a, b)
        yield f"test rmse {a:.6f} and {b:.6f}"


def rates() -> Iterator[str]:
    """Speeds of this machine, for `zoo/memory/devices.yaml`."""

    def seconds(work: Callable[[], Any], times: int = 10) -> float:
        work()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / times

    size = 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=GPU, dtype=dtype) for _ in range(2))
        yield f"{dtype} product: {2 * size**3 / seconds(lambda: a @ b) / 1e12:.1f} TFLOP/s"  # noqa: B023
    big, other = (torch.empty(2**30, dtype=torch.uint8, device=GPU) for _ in range(2))
    yield f"copy: {2 * 2**30 / seconds(lambda: other.copy_(big)) / 1e9:.0f} GB/s"
    host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    part = big[: 2**28]
    yield f"host to device: {2**28 / seconds(lambda: part.copy_(host, non_blocking=True)) / 1e9:.1f} GB/s"
    yield f"device to host: {2**28 / seconds(lambda: host.copy_(part, non_blocking=True)) / 1e9:.1f} GB/s"
    small_ = torch.ones(8, device=GPU)
    yield f"an operation on 8 numbers: {seconds(lambda: small_ + 1, 5000) * 1e6:.2f} us"
    leaf = torch.ones(8, device=GPU, requires_grad=True)
    yield f"... with a gradient to come: {seconds(lambda: leaf + 1, 5000) * 1e6:.2f} us"
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.randn(8, 20, 512, 64, device=GPU, dtype=dtype)
        mask = torch.zeros(8, 1, 512, 512, device=GPU, dtype=dtype)
        for what, given in (("masked", mask), ("plain", None)):
            took = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, given))  # noqa: B023
            yield f"{dtype} attention, {what}: {4 * 8 * 20 * 512 * 512 * 64 / took / 1e12:.1f} TFLOP/s"


CHECKS = {
    "rates": rates, "whole runs": whole_runs, "kept budgets": kept_budgets, "going on": going_on,
    "same bits": same_bits,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_checks", description=__doc__)
    parser.add_argument("--only", choices=CHECKS)
    given = parser.parse_args(arguments)
    failed = 0
    for name, check in CHECKS.items():
        if given.only not in (None, name):
            continue
        started = time.perf_counter()
        try:
            with reproducible() if name == "same bits" else contextlib.nullcontext():
                for said in check():
                    print(f"{name}: {said}", flush=True)
        except Exception:
            failed += 1
            print(f"{name}: FAILED\n{traceback.format_exc()}", flush=True)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
