"""Predictions beside what others measured on real GPUs: ``python -m tests.benchmarks.measured_gpus FILE [--json]``.

FILE has the columns of ``t4_lora_runs.csv`` (LoRA on fp16 or NF4 decoders, fitcheck-llm) or the keys of
``a6000_training_runs.json`` (full and LoRA training in bf16, vramcalc). Each row's model is built by shape, without
weights, from the row's own columns, and goes through `zoo.memory.predict_peak`. Nothing is fitted: what a source did
that is not in its columns is an explicit field of `Run`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from zoo.memory import Prediction, predict_peak
from zoo.step import storage_free
from zoo.techniques.quantization import layers
from zoo.units import MIB


@dataclass(frozen=True)
class Shape:
    """A Llama, or a Qwen2 where its q, k and v have a bias."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool
    qkv_bias: bool

    def config(self, attention: str) -> Any:
        from transformers import LlamaConfig, Qwen2Config

        common: dict[str, Any] = {
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.ffn, "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied, "head_dim": self.head_dim, "attn_implementation": attention,
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 8192,
        }  # fmt: skip
        return (Qwen2Config if self.qkv_bias else LlamaConfig)(**common)


@dataclass(frozen=True)
class Run:
    """One training run. What is not in a source's columns, and what its authors say of it, is here."""

    name: str
    device: str
    shape: Shape
    attention: str
    rows: int
    length: int
    dtype: torch.dtype
    base: str  # none, nf4 or nf4-double
    rank: int | None
    targets: tuple[str, ...]
    checkpointing: bool
    backend: SDPBackend | None
    fp32_unquantized: bool
    """`prepare_model_for_kbit_training`: every parameter that is not quantized becomes fp32."""
    fp32_adapters: bool
    input_require_grads: bool
    keep_gradients: bool
    """``zero_grad(set_to_none=False)``."""
    release_logits: bool
    """Logits die before the optimizer's step; else they live until the next forward pass has theirs."""
    reads_ahead: int
    """Tensors by which the threads that read a checkpoint may be ahead of the one that quantizes. No source says it: it
    is a matter of timing, and an assumption. 16 and 32 give the same errors of reserved memory (worst 6 %), 0 and no
    bound at all larger ones (worst 15 % and 56 %); allocated memory hardly depends on it."""
    always_masked: bool
    """transformers 4.57: a causal mask is made even where one sequence fills each row, and the efficient kernel gets it
    as an additive one in every layer (``masking_utils.py``: ``find_packed_sequence_indices`` never returned None)."""


class Training:
    """A run that can be stepped: the model, loaded as `transformers` loads it, and ``torch.optim.AdamW`` (foreach)."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        with storage_free():
            model = _model(run)
            if run.base != "none":
                _replace_linears(model, run)
        load(model, device, run.reads_ahead)
        if run.base != "none" and run.fp32_unquantized:
            _upcast(model)
        if run.rank is not None:
            model = _adapt(model, run, device)
        if run.checkpointing:
            inner = model.get_base_model() if run.rank is not None else model
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if run.input_require_grads:
                inner.enable_input_require_grads()
        model.config.use_cache = False
        self.model = model.train()
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)
        self.ids = torch.zeros(run.rows, run.length, dtype=torch.long, device=device)


def step(training: Training, phase: Callable[[str], contextlib.AbstractContextManager[None]]) -> None:
    run = training.run
    backend = sdpa_kernel(run.backend) if run.backend is not None else contextlib.nullcontext()
    training.optimizer.zero_grad(set_to_none=not run.keep_gradients)
    with backend:
        with phase("forward"):
            out = training.model(input_ids=training.ids, labels=training.ids)
        with phase("backward"):
            out.loss.backward()
        if run.release_logits:
            del out
    with phase("optimizer"):
        training.optimizer.step()


def predict(run: Run) -> Prediction:
    """What a run takes, with grouped key/value heads expanded before the kernel, as both sources did."""
    from transformers import masking_utils
    from transformers.integrations import sdpa_attention

    def never(*arguments: object) -> bool:  # a mock would keep the tensors that it is called with
        return False

    def always(position_ids: torch.Tensor) -> torch.Tensor:
        steps = torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1)
        return (steps != 1).cumsum(-1)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sdpa_attention, "use_gqa_in_sdpa", never))
        if run.always_masked:
            stack.enter_context(mock.patch.object(masking_utils, "find_packed_sequence_indices", always))
        return predict_peak(lambda device: Training(run, device), step, run.device)


# ------------------------------------------------------------------------------------------------ building and loading


def _model(run: Run) -> nn.Module:
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(run.dtype)
    try:
        made = (Qwen2ForCausalLM if run.shape.qkv_bias else LlamaForCausalLM)(run.shape.config(run.attention))
    finally:
        torch.set_default_dtype(before)
    made.tie_weights()
    return made


def _replace_linears(model: nn.Module, run: Run) -> None:
    """bitsandbytes' own layers in place of all but the head (``transformers.integrations.bitsandbytes``)."""
    import bitsandbytes

    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]:
        made = layers().empty_4bit(linear, compress=run.base == "nf4-double", kind=bitsandbytes.nn.Linear4bit)
        made.requires_grad_(False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]


def load(model: nn.Module, device: torch.device, reads_ahead: int) -> None:
    """Allocate parameters in the order of their names; the thread that quantizes follows those that read.

    Source: ``transformers/core_model_loading.py``, ``convert_and_load_state_dict_in_model``: names sorted with numbers
    as numbers, read by up to four threads. The lead of the readers is drawn anew for each tensor, 0 to `reads_ahead`.
    """
    owners = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
              for name, _ in model.named_parameters()}  # fmt: skip
    made: dict[nn.Parameter, nn.Parameter] = {}
    names = sorted(owners, key=_natural)
    leads = random.Random(0)
    unread = iter(names)
    read: dict[str, torch.Tensor] = {}
    for position, name in enumerate(names):
        for ahead in itertools.islice(
            unread, max(0, position + 1 + leads.randint(0, reads_ahead) - len(made) - len(read))
        ):
            old = owners[ahead][0]._parameters[owners[ahead][1]]
            assert old is not None
            read[ahead] = torch.empty(old.shape, dtype=old.dtype, device=device)
        owner, leaf = owners[name]
        old, value = owner._parameters[leaf], read.pop(name)
        assert old is not None
        if type(old).__name__ == "Params4bit":
            made[old] = layers().quantized_4bit(value, owner, compress=old.compress_statistics)
        else:
            made[old] = nn.Parameter(value, requires_grad=old.requires_grad)
        owner._parameters[leaf] = made[old]
        del value
    for module in model.modules():
        for leaf, old in module._parameters.items():
            module._parameters[leaf] = made.get(old, old)
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[leaf] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]


def _upcast(model: nn.Module) -> None:
    """``peft.prepare_model_for_kbit_training``."""
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.dtype == torch.float16 and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(torch.float32)


def _adapt(model: nn.Module, run: Run, device: torch.device) -> Any:
    from peft import LoraConfig, get_peft_model

    with storage_free(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=run.rank or 0, lora_alpha=16, lora_dropout=0.0, target_modules=list(run.targets))
        adapted: Any = get_peft_model(model, config, low_cpu_mem_usage=True)  # type: ignore[arg-type]
    for name, module in adapted.named_modules():
        for leaf, old in module._parameters.items():
            if old is not None and ".lora_" in name:
                dtype = torch.float32 if run.fp32_adapters else run.dtype
                made = torch.empty(old.shape, dtype=dtype, device=device)
                module._parameters[leaf] = nn.Parameter(made)
    return adapted


# ------------------------------------------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class Measured:
    """A row: the run and what was measured (MiB; None where it was not)."""

    model: str
    attention: str
    group: str
    run: Run
    allocated: float
    reserved: float | None
    phase: str | None
    phases: dict[str, float]
    resident: float | None = None


_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def t4_row(row: dict[str, str]) -> Measured:
    """A row of ``t4_lora_runs.csv``."""
    phases = {p: float(row[f"peak_{p}_mib"]) for p in ("forward", "backward", "optimizer")}
    base = {"none": "none", "nf4": "nf4-double" if row["double_quant"] == "True" else "nf4"}[row["quant"]]
    shape = Shape(
        int(row["hidden"]), int(row["layers"]), int(row["heads"]), int(row["kv_heads"]), int(row["head_dim"]),
        int(row["ffn"]), int(row["vocab"]), row["tied"] == "True", "qwen2" in row["model"].lower(),
    )  # fmt: skip
    sdpa = row["attn"] != "eager"
    run = Run(
        name=row["run_id"], device="t4", shape=shape, attention="sdpa" if sdpa else "eager", rows=int(row["batch"]),
        length=int(row["seq"]), dtype=_DTYPES[row["compute_dtype"]],
        base=base, rank=int(row["lora_r"]), targets=tuple(row["lora_targets"].split()),
        checkpointing=row["grad_ckpt"] == "non-reentrant", backend=SDPBackend.EFFICIENT_ATTENTION if sdpa else None,
        fp32_unquantized=True, fp32_adapters=True, input_require_grads=True, keep_gradients=False, reads_ahead=16,
        always_masked=False, release_logits=False,
    )  # fmt: skip
    return Measured(
        row["model"], row["attn"], f"T4 {base} {row['attn']}", run, float(row["peak_allocated_mib"]),
        float(row["peak_reserved_mib"]), max(phases, key=lambda p: phases[p]), phases,
        float(row["resident_before_step_mib"]),
    )  # fmt: skip


def a6000_row(row: dict[str, Any]) -> Measured | None:
    """A row of ``a6000_training_runs.json``, None for those with autocast."""
    params, arch = row["params"], row["params"]["arch"]
    if params["precision"] != "pure":
        return None
    shape = Shape(
        arch["hidden_size"], arch["num_layers"], arch["num_heads"], arch["num_kv_heads"], arch["head_dim"],
        arch["intermediate_size"], arch["vocab_size"], arch["tie_word_embeddings"], arch["attention_bias"],
    )  # fmt: skip
    run = Run(
        name=arch["name"], device="rtx-a6000-48gb", shape=shape, attention=params["attn_impl"], rows=params["batch"],
        length=params["seq_len"], dtype=torch.bfloat16, base="none", rank=params["lora_rank"],
        targets=("q_proj", "k_proj", "v_proj", "o_proj"), checkpointing=params["grad_checkpoint"], backend=None,
        fp32_unquantized=False, fp32_adapters=True, input_require_grads=params["lora_rank"] is not None,
        keep_gradients=True, reads_ahead=0, always_masked=True, release_logits=True,
    )  # fmt: skip
    kind = "checkpointed" if params["grad_checkpoint"] else params["attn_impl"]
    return Measured(
        arch["name"], params["attn_impl"], f"A6000 {kind} {'lora' if params['lora_rank'] else 'full'}", run,
        row["measured"]["total"] / MIB, None, None, {}, row["measured"]["weights"] / MIB,
    )  # fmt: skip


def read(path: Path) -> tuple[list[Measured], int]:
    """Rows of a file, and how many of it are out of scope."""
    if path.suffix == ".json":
        rows = [a6000_row(row) for row in json.loads(path.read_text(encoding="utf-8"))]
        return [row for row in rows if row is not None], sum(row is None for row in rows)
    with path.open(encoding="utf-8", newline="") as file:
        return [t4_row(row) for row in csv.DictReader(file)], 0


def compare(rows: Iterable[Measured]) -> Iterator[dict[str, Any]]:
    """One object for each row; rows with the same setting are predicted once."""
    known: dict[Any, Prediction] = {}
    for row in rows:
        key = json.dumps({**vars(row.run), "name": ""}, default=str)
        started = time.perf_counter()
        if key not in known:
            known[key] = predict(row.run)
        found = known[key]
        yield {
            "model": row.model,
            "attention": row.attention,
            "group": row.group,
            "rows": row.run.rows,
            "length": row.run.length,
            "predicted_allocated_mib": found.allocated / MIB,
            "measured_allocated_mib": row.allocated,
            "allocated_error_percent": 100 * (found.allocated / MIB / row.allocated - 1),
            "predicted_reserved_mib": found.reserved / MIB,
            "measured_reserved_mib": row.reserved,
            "reserved_error_percent": None if row.reserved is None else 100 * (found.reserved / MIB / row.reserved - 1),
            "predicted_phase": found.phase,
            "measured_phase": row.phase,
            "predicted_phases_mib": {name: peak.allocated / MIB for name, peak in found.phases.items()},
            "measured_phases_mib": row.phases,
            "predicted_resident_mib": found.resident / MIB,
            "measured_resident_mib": row.resident,
            "seconds": time.perf_counter() - started,
        }


def summary(objects: list[dict[str, Any]], outside: int) -> str:
    """Median and worst error of each group."""
    lines = [
        f"{'group':<24}{'rows':>5}{'allocated: median':>19}{'worst':>8}{'reserved: median':>18}{'worst':>8}  phase"
    ]
    groups = sorted({o["group"] for o in objects})
    for group in [*groups, "all"]:
        members = [o for o in objects if group in ("all", o["group"])]
        line = f"{group:<24}{len(members):>5}"
        for key, width in (("allocated", 19), ("reserved", 18)):
            errors = [abs(o[f"{key}_error_percent"]) for o in members if o[f"{key}_error_percent"] is not None]
            line += f"{statistics.median(errors):>{width - 1}.2f}%{max(errors):>7.2f}%" if errors else " " * (width + 8)
        named = [o for o in members if o["measured_phase"]]
        right = sum(o["measured_phase"] == o["predicted_phase"] for o in named)
        lines.append(f"{line}  {right}/{len(named)}" if named else line)
    if outside:
        lines.append(f"{outside} rows are out of scope (autocast)")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="print the list of objects")
    parser.add_argument("--match", default="", help="only runs whose name contains this")
    options = parser.parse_args(arguments)
    rows, outside = read(options.file)
    objects = []
    for found in compare(row for row in rows if options.match in row.run.name):
        objects.append(found)
        if not options.json:
            reserved = found["reserved_error_percent"]
            print(
                f"{found['model']:<38} {found['group']:<20} {found['rows']:>3} x {found['length']:<5}"
                f" allocated {found['predicted_allocated_mib']:9.1f} {found['measured_allocated_mib']:9.1f}"
                f" {found['allocated_error_percent']:+6.2f}%"
                + (
                    f"  reserved {found['predicted_reserved_mib']:8.0f} {found['measured_reserved_mib']:8.0f}"
                    f" {reserved:+6.2f}%"
                    if reserved is not None
                    else ""
                )
                + f"  {found['predicted_phase']} {found['seconds']:.1f} s",
                flush=True,
            )
    if options.json:
        print(json.dumps(objects, indent=1))
    print(summary(objects, outside), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
