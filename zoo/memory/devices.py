"""What is known of GPUs: memory, speeds and links, each with its source; and the device of this machine.

The facts are in ``devices.yaml`` beside this file, in the units of datasheets. Nothing here imports torch before
`detect` or `Device.rates_for` is called.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from zoo.card import Frozen
from zoo.errors import InputError, nearest
from zoo.strict_yaml import Places, Problems, read_yaml
from zoo.units import GIB, MIB

if TYPE_CHECKING:
    from zoo.memory.roofline import Rates

FACTS = (
    "memory_bytes",
    "memory_bandwidth",
    "fp32",
    "tf32",
    "bf16",
    "fp16",
    "host_link",
    "context_bytes",
    "launch_seconds",
    "multiprocessors",
)
"""The fields of a `Device` that need a source wherever they are known."""

_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MAKERS = {"nvidia", "geforce", "tesla", "quadro", "amd", "instinct", "gpu"}


class Device(Frozen):
    """A GPU, or the CPU of this machine (`name` is ``cpu``): how much it holds and how fast it is.

    `memory_bytes` is what the driver reports as total where that is known (`memory_source` says so); for ``cpu`` what
    is available now. `fp32`, `tf32`, `bf16`, `fp16` are FLOP/s, dense, a multiply-add counted as two; `tf32` and `bf16`
    are None where the device has no such arithmetic. `multiprocessors` are those of the driver, on a CPU its cores.
    `memory_bandwidth` and `host_link` (one direction) are bytes/s; `host_link` is None for ``cpu``, which has nothing
    to cross. `context_bytes` is what a process holds before its first tensor, None where nobody published a measurement
    that holds for today's torch. `sources` maps every known fact to where it comes from. Raises `ValueError` for a
    known fact without source.
    """

    name: str
    title: str
    vendor: Literal["nvidia", "amd", "host"]
    aliases: tuple[str, ...] = ()
    memory_bytes: PositiveInt
    memory_bandwidth: PositiveFloat
    fp32: PositiveFloat
    tf32: PositiveFloat | None = None
    bf16: PositiveFloat | None = None
    fp16: PositiveFloat
    host_link: PositiveFloat | None = None
    context_bytes: PositiveInt | None = None
    launch_seconds: PositiveFloat
    multiprocessors: PositiveInt
    sources: Mapping[str, str] = Field(description="fact -> where it comes from")

    @model_validator(mode="after")
    def _every_fact_has_a_source(self) -> Device:
        bare = [fact for fact in FACTS if getattr(self, fact) is not None and not self.sources.get(fact)]
        if bare:
            raise ValueError(f"{self.name}: no source for {', '.join(bare)}; every fact that is given needs one")
        return self

    @property
    def memory_source(self) -> str:
        return self.sources["memory_bytes"]

    @property
    def memory_is_nominal(self) -> bool:
        """Whether `memory_bytes` is a datasheet's, of which the driver keeps some, and not what a driver reported."""
        return self.memory_source.startswith("nominal")

    @property
    def arithmetic(self) -> frozenset[str]:
        """The number formats that the device computes in."""
        return frozenset(name for name in ("fp32", "tf32", "bf16", "fp16") if getattr(self, name) is not None)

    def rates_for(self) -> Rates:
        """Speeds for the roofline: 16 bits are bf16 where the device has it, else fp16. fp32 is without TF32, as in
        torch unless it is allowed by hand."""
        from zoo.memory.roofline import Rates

        link = self.host_link or self.memory_bandwidth  # a CPU has nothing to cross
        cpu = self.vendor == "host"
        return Rates(self.fp32, self.bf16 or self.fp16, self.memory_bandwidth, self.launch_seconds, link, cpu=cpu)


def devices() -> Mapping[str, Device]:
    """Every known device by name, and ``cpu``: this machine as it is now."""
    return {**_accelerators(), "cpu": _this_cpu()}


def find(name: str) -> Device:
    """The device of a name, however it is written (``RTX 3060``, ``a100-80gb``, ``NVIDIA L4``); ``auto`` is `detect`.

    Raises `InputError` with the nearest spelling and all names where there is none.
    """
    key = _key(name)
    if key == "auto":
        return detect()
    if key == "cpu":
        return _this_cpu()
    spellings = _spellings()
    if key in spellings:
        return _accelerators()[spellings[key]]
    close = nearest(key, list(spellings))
    hint = f'; did you mean "{spellings[close]}"?' if close else ""
    raise InputError(
        f'"{name}" is not a known GPU{hint} (known: auto, cpu, {", ".join(sorted(_accelerators()))}); '
        "for any other, give its memory as budget instead, such as 8GiB"
    )


def detect() -> Device:
    """The accelerator of this machine with the memory that its driver reports, or ``cpu`` with what is available now.

    One that is not known by name gets the speeds of the known device nearest in memory, and says so in its sources.
    """
    import torch

    if not torch.cuda.is_available():
        return _this_cpu()
    found = torch.cuda.get_device_properties(0)
    memory = int(found.total_memory)
    known = _spellings().get(_key(found.name))
    if known is not None:
        like = _accelerators()[known]
        return _with(like, {"memory_bytes": memory}, "torch.cuda.get_device_properties(0) of this machine")
    vendor = "amd" if torch.version.hip else "nvidia"
    has_bf16 = vendor == "amd" or found.major >= 8
    kin = [d for d in _accelerators().values() if d.vendor == vendor and (d.bf16 is not None) == has_bf16]
    like = min(kin, key=lambda device: abs(device.memory_bytes - memory))
    assumed = {fact: f"assumed like {like.name}: {found.name} is not known" for fact in FACTS if fact in like.sources}
    stranger = like.model_copy(
        update={
            "name": re.sub(r"[^a-z0-9]+", "-", found.name.lower()).strip("-"),
            "title": f"{found.name} (speed assumed like {like.title})",
            "aliases": (),
            "context_bytes": None,
            "sources": {fact: source for fact, source in assumed.items() if fact != "context_bytes"},
        }
    )
    return _with(stranger, {"memory_bytes": memory}, "torch.cuda.get_device_properties(0) of this machine")


def _with(device: Device, facts: Mapping[str, Any], source: str) -> Device:
    return device.model_copy(update={**facts, "sources": {**device.sources, **dict.fromkeys(facts, source)}})


def _key(name: str) -> str:
    """``NVIDIA GeForce RTX 3060`` -> ``rtx3060``: no case, no punctuation, no maker."""
    return "".join(word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in _MAKERS)


# -------------------------------------------------------------------------------------------------- the catalogue


@functools.cache
def _facts() -> Mapping[str, Any]:
    """``devices.yaml`` as it is written."""
    text = importlib.resources.files("zoo.memory").joinpath("devices.yaml").read_text(encoding="utf-8")
    places, problems = Places("zoo/memory/devices.yaml"), Problems()
    facts = read_yaml(text, places, problems)
    if problems:
        raise InputError(places.sentences(problems))
    return dict(facts)


@functools.cache
def _accelerators() -> Mapping[str, Device]:
    facts = _facts()
    return {name: _device(name, entry, facts) for name, entry in facts["devices"].items()}


@functools.cache
def _spellings() -> Mapping[str, str]:
    """Every name and alias as `_key` has it, to the name of the device. Raises `ValueError` for a clash."""
    table: dict[str, str] = {}
    for device in _accelerators().values():
        for spelling in (device.name, *device.aliases):
            other = table.setdefault(_key(spelling), device.name)
            if other != device.name:
                raise ValueError(f'devices.yaml: "{spelling}" names both {other} and {device.name}')
    return table


def _device(name: str, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> Device:
    """One entry in SI units, with a source for each fact."""
    memory, bandwidth, tflops = entry["memory"], entry["bandwidth"], dict(entry["tflops"])
    link, launch, context = facts["links"][entry["link"]], facts["launch"], entry.get("context")
    rates_source = tflops.pop("source")
    values: dict[str, Any] = {
        "memory_bytes": _bytes(memory),
        "memory_bandwidth": bandwidth["gb_per_second"] * 1e9,
        **{rate: value * 1e12 for rate, value in tflops.items()},
        "host_link": link["gb_per_second"] * 1e9,
        "launch_seconds": launch["seconds"],
        "multiprocessors": entry["multiprocessors"]["count"],
    }
    sources = {
        "memory_bytes": memory["source"],
        "memory_bandwidth": bandwidth["source"],
        **dict.fromkeys(tflops, rates_source),
        "host_link": link["source"],
        "launch_seconds": launch["source"],
        "multiprocessors": entry["multiprocessors"]["source"],
    }
    if context is not None:
        values["context_bytes"], sources["context_bytes"] = _bytes(context), context["source"]
    plain = {key: entry[key] for key in ("title", "vendor")}
    return Device(name=name, aliases=tuple(entry.get("aliases", ())), sources=sources, **plain, **values)


def _bytes(amount: Mapping[str, Any]) -> int:
    return int(amount["bytes"] if "bytes" in amount else amount["mib"] * MIB)


# ---------------------------------------------------------------------------------------------------- this machine


def _this_cpu() -> Device:
    """This machine: memory available now, speeds in proportion to the cores that this process may use."""
    cpu = _facts()["cpu"]
    cores = _cores()
    scale = cores / cpu["cores"]
    tflops, bandwidth, launch, emulated = cpu["tflops"], cpu["bandwidth"], cpu["launch"], cpu["emulated_bf16"]
    bf16, bf16_source = tflops["bf16"], tflops["source"]
    kind = _bf16_kind(_cpu_flags())
    if kind != "native":
        # Without instructions for bf16 it is slower than fp32, not faster; a plan must not be chosen for its speed.
        bf16, bf16_source = tflops["fp32"] * emulated[kind], emulated["source"]
    memory = _available_memory()
    return Device(
        name="cpu",
        title=f"CPU of this machine ({cores} cores, {memory / GIB:.1f} GiB available)",
        vendor="host",
        memory_bytes=memory,
        memory_bandwidth=bandwidth["gb_per_second"] * 1e9 * scale,
        fp32=tflops["fp32"] * 1e12 * scale,
        bf16=bf16 * 1e12 * scale,
        fp16=tflops["fp16"] * 1e12 * scale,
        launch_seconds=launch["seconds"],
        multiprocessors=cores,
        sources={
            "memory_bytes": "available now, by psutil, and no more than the control group allows",
            "memory_bandwidth": bandwidth["source"],
            "fp32": tflops["source"],
            "bf16": bf16_source,
            "fp16": tflops["source"],
            "launch_seconds": launch["source"],
            "multiprocessors": "cores that this process may use",
        },
    )


def _cores() -> int:
    """Cores that this process may run on: fewer than the machine has, where a scheduler says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_flags() -> frozenset[str]:
    """Instruction sets that Linux lists (``flags`` on x86, ``Features`` on ARM); none where it does not say."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def _bf16_kind(flags: Iterable[str]) -> Literal["native", "avx512", "other"]:
    """How a processor multiplies bf16: AMX and AVX512-BF16 (x86) and BF16 (ARM) do it natively."""
    has = set(flags)
    if has & {"amx_bf16", "avx512_bf16", "bf16"}:
        return "native"
    return "avx512" if {"avx512f", "avx512bw"} <= has else "other"


def _available_memory() -> int:
    """Bytes that this process can still take: of the machine, or of its control group (containers, batch jobs)."""
    import psutil

    return max(1, min([int(psutil.virtual_memory().available), *_cgroup_room()]))


def _cgroup_room() -> list[int]:
    """What every control group around this process still allows, where it has a limit (cgroup versions 2 and 1)."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    room = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, limit, use, cache = _CGROUPS / "memory", "limit_in_bytes", "usage_in_bytes", "total_inactive_file"
        elif not controllers:
            root, limit, use, cache = _CGROUPS, "max", "current", "inactive_file"
        else:
            continue
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            try:
                most, used, statistics = (
                    (root / group / f"memory.{file}").read_text(encoding="utf-8") for file in (limit, use, "stat")
                )
            except OSError:
                continue
            if most.strip() != "max":
                # Files that were read count as used, but give way when memory is asked for.
                files = re.search(rf"^{cache} (\d+)$", statistics, re.MULTILINE)
                room.append(max(0, int(most) - int(used) + (int(files[1]) if files else 0)))
    return room
