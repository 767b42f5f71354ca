"""What other estimators say of a training run: ``python peer_questions.py PEER < RUNS > ANSWERS``.

Run by `tests.benchmarks.peers` in a process that has the peer and nothing of this project. RUNS is a JSON list of
mappings (see `peers.py`), ANSWERS one of mappings from what is predicted (allocated, reserved, process) to MiB, what
the peer is for first, or ``none``: the reason why it cannot say. Every peer is asked through its own public functions,
and told all that it has a word for.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MIB = 2**20
Run = dict[str, Any]
Answer = dict[str, Any]
DEFAULT_TARGETS = {"q_proj", "k_proj", "v_proj", "o_proj"}
GB = 10**9


def fitcheck(run: Run) -> Answer:
    """Its total includes context and allocator, a term of its own: the memory of the process."""
    from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu

    if run["rank"] is None:
        return _none("full training in 16 bits without master weights has no word here")
    model = ModelConfig(
        name=run["model"], num_params=run["parameters"], hidden_size=run["hidden"], num_layers=run["layers"],
        num_attention_heads=run["heads"], num_kv_heads=run["kv_heads"], intermediate_size=run["ffn"],
        vocab_size=run["vocabulary"], head_dim=run["head_dim"], tie_word_embeddings=run["tied"],
    )  # fmt: skip
    training = TrainingConfig(
        precision=run["dtype"], quantization="none" if run["base"] == "none" else "nf4",
        double_quant=run["base"] == "nf4-double", optimizer="adamw", optimizer_dtype="fp32", batch_size=run["rows"],
        seq_len=run["length"], lora_rank=run["rank"], lora_targets=list(run["targets"]),
        grad_checkpoint=run["checkpointing"], flash_attn=run["attention"] != "eager",
    )  # fmt: skip
    told = estimate(model, training, get_gpu(run["gpu"]))
    return {"process": told.total_mib, "allocated": told.total_mib - told.overhead_mib}


def canifinetune(run: Run) -> Answer:
    """Its target is the peak that PyTorch reserves; the safety margin is reported apart and left out."""
    from canifinetune.estimator import EstimateRequest, estimate

    if set(run["targets"]) != DEFAULT_TARGETS and run["rank"] is not None:
        return _none("other LoRA targets than its own are refused")
    quantized = run["base"] != "none"
    told = estimate(
        EstimateRequest(
            model_id=run["model"], method="full" if run["rank"] is None else "qlora" if quantized else "lora",
            seq_len=run["length"], micro_batch_size=run["rows"], base_dtype=run["dtype"],
            quantization={"none": "none", "nf4": "nf4", "nf4-double": "nf4_double_quant"}[run["base"]],
            lora_rank=run["rank"] or 16, lora_target_scope="attention", optimizer="adamw_torch",
            gradient_checkpointing=run["checkpointing"], attention_implementation=run["attention"],
            gpu_vram_gb=run["gpu_mib"] / 1024, use_network=False,
            override={
                "family": run["family"], "hidden_size": run["hidden"], "num_hidden_layers": run["layers"],
                "num_attention_heads": run["heads"], "num_key_value_heads": run["kv_heads"],
                "intermediate_size": run["ffn"], "vocab_size": run["vocabulary"],
                "total_params": run["parameters"], "tie_word_embeddings": run["tied"],
            },
        )
    )  # fmt: skip
    reserved = told.memory.total_estimated_gb - told.memory.safety_margin_gb
    return {"reserved": reserved * 1024, "allocated": (reserved - told.memory.cuda_overhead_gb) * 1024}


def kitsune(run: Run) -> Answer:
    """A model without storage goes in; checkpointing and the kind of attention it has no word for."""
    import torch
    from kitsune.predict import LoRAConfig, estimate_lora_memory, predict_memory
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=run["hidden"], num_hidden_layers=run["layers"], num_attention_heads=run["heads"],
        num_key_value_heads=run["kv_heads"], intermediate_size=run["ffn"], vocab_size=run["vocabulary"],
        tie_word_embeddings=run["tied"], head_dim=run["head_dim"], attention_bias=run["qkv_bias"], use_cache=False,
        attn_implementation=run["attention"],
    )  # fmt: skip
    quantized = run["base"] != "none"
    dtype = torch.bfloat16 if run["dtype"] == "bf16" else torch.float16
    torch.set_default_dtype(torch.float32 if quantized else dtype)  # a quantized base is to be given in full precision
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if run["rank"] is None:
        told = predict_memory(model, (run["length"],), run["rows"], dtype, "adamw", training=True)
    else:
        lora = LoRAConfig(rank=run["rank"], target_modules=tuple(run["targets"]), use_qlora=quantized)
        told = estimate_lora_memory(model, (run["length"],), run["rows"], dtype, lora)
    return {"process": told.total_bytes / MIB, "allocated": (told.total_bytes - told.overhead_bytes) / MIB}


def torch_preflight(run: Run) -> Answer:
    """Its total includes context and fragmentation: the memory of the process."""
    from torch_preflight.vram import PrecisionMode, RunConfig, TransformerShape, estimate_config
    from torch_preflight.vram.providers import static

    if run["base"] != "none":
        return _none("a quantized base has no word here")
    shape = TransformerShape(
        layers=run["layers"], hidden=run["hidden"], heads=run["heads"], vocab=run["vocabulary"],
        intermediate=run["ffn"], kv_heads=run["kv_heads"], tied_embeddings=run["tied"], gated_mlp=True,
        has_lm_head=True,
    )  # fmt: skip
    profile = static.from_shape(shape, run["model"])
    config = RunConfig(
        batch_size=run["rows"], seq_len=run["length"],
        precision=PrecisionMode.PURE_BF16 if run["dtype"] == "bf16" else PrecisionMode.PURE_FP16,
        gradient_checkpointing=run["checkpointing"], flash_attention=run["attention"] != "eager",
        frozen_fraction=0.0 if run["rank"] is None else 1 - run["trainable"] / profile.param_count,
    )  # fmt: skip
    told = estimate_config(profile, config, gpu=run["gpu"]).breakdown
    return {"process": told.total / MIB, "allocated": (told.total - told.cuda_context - told.fragmentation) / MIB}


def vramcalc(run: Run) -> Answer:
    """Its total is what PyTorch allocates; the rest is a term of its own."""
    import vramcalc as peer
    from vramcalc.arch import Arch

    if run["base"] != "none":
        return _none("a quantized base has no word here")
    if run["rank"] is not None and set(run["targets"]) != DEFAULT_TARGETS:
        return _none("other LoRA targets than its own have no word here")
    arch = Arch(
        hidden_size=run["hidden"], num_layers=run["layers"], num_heads=run["heads"], num_kv_heads=run["kv_heads"],
        head_dim=run["head_dim"], intermediate_size=run["ffn"], vocab_size=run["vocabulary"],
        tie_word_embeddings=run["tied"], attention_bias=run["qkv_bias"], norms_per_layer=2, name=run["model"],
    )  # fmt: skip
    told = peer.estimate(
        arch, mode="train", dtype=run["dtype"], batch=run["rows"], seq_len=run["length"], lora_rank=run["rank"],
        grad_checkpoint=run["checkpointing"], optimizer="adamw", precision="pure", attn_impl=run["attention"],
    )  # fmt: skip
    return {"allocated": told.total / MIB}


def _none(reason: str) -> Answer:
    return {"none": reason}


PEERS = {
    "fitcheck-llm": fitcheck,
    "canifinetune": canifinetune,
    "torch-kitsune": kitsune,
    "torch-preflight": torch_preflight,
    "vramcalc": vramcalc,
}


def main() -> None:
    ask = PEERS[sys.argv[1]]
    answers = []
    for run in json.load(sys.stdin):
        try:
            answers.append(ask(run))
        except Exception as error:  # whatever a peer says of a run that it cannot do
            answers.append(_none(f"{type(error).__name__}: {error}"[:200]))
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
