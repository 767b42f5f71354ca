"""The catalogue of devices: facts with sources, names as people write them, and the device of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from zoo.errors import InputError
from zoo.memory import devices as catalogue
from zoo.memory.devices import FACTS, Device, detect, devices, find
from zoo.memory.roofline import Rates
from zoo.units import GIB, MIB

EVERY = sorted(devices())


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without CUDA, control groups or processor flags, with 64 GiB available and four cores."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    monkeypatch.setattr(catalogue, "_cores", lambda: 4)
    for name in ("_CPUINFO", "_CGROUPS", "_OWN_CGROUPS"):
        monkeypatch.setattr(catalogue, name, tmp_path / name)
    return tmp_path


def _gpu(monkeypatch: pytest.MonkeyPatch, name: str, total_memory: int, major: int, hip: str | None = None) -> None:
    found = SimpleNamespace(name=name, total_memory=total_memory, major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    monkeypatch.setattr(torch.version, "hip", hip)


def test_catalogue_has_what_people_own() -> None:
    assert len(EVERY) >= 25
    asked = """
        rtx-3060-12gb rtx-3060-laptop-6gb rtx-3090-24gb rtx-4060-ti-16gb rtx-4070-12gb rtx-4080-16gb
        rtx-4080-laptop-12gb rtx-4090-24gb rtx-5070-ti-16gb rtx-5080-16gb rtx-5090-32gb rtx-a6000-48gb
        rtx-6000-ada-48gb t4 v100-16gb v100-32gb p100-16gb a10 a10g a30 a40 a100-40gb a100-80gb l4 l40s h100-pcie-80gb
        h100-sxm-80gb h200 b200 mi250x mi300x gh200-96gb cpu
    """
    assert set(asked.split()) <= set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_every_fact_has_a_source_and_every_source_a_fact(name: str) -> None:
    device = devices()[name]
    known = {fact for fact in FACTS if getattr(device, fact) is not None}
    assert set(device.sources) == known
    assert all(len(source) > 10 for source in device.sources.values())
    assert device.name == name
    assert device.title


@pytest.mark.parametrize("name", [name for name in EVERY if name != "cpu"])
def test_facts_have_plausible_magnitudes(name: str) -> None:
    """A slip of units (GB for MB, TFLOPS with sparsity, both directions of a link) leaves these ranges."""
    device = devices()[name]
    assert 5 * GIB < device.memory_bytes < 200 * GIB
    assert 200e9 < device.memory_bandwidth <= 8000e9
    assert 8e12 < device.fp32 < 200e12
    assert device.fp32 <= device.fp16 < 2500e12
    assert device.tf32 is None or device.fp32 <= device.tf32 < device.fp16
    assert device.bf16 in (None, device.fp16)
    assert device.host_link in (15.75e9, 31.5e9, 63e9, 450e9)
    # A size in the name is decimal or binary, less what the driver, ECC and reserved blocks take.
    stated = next((int(part[:-2]) for part in name.split("-") if part.endswith("gb")), None)
    assert stated is None or 0.92 * stated * GIB < device.memory_bytes <= stated * GIB


def test_devices_order_as_everybody_knows() -> None:
    bandwidth = [find(name).memory_bandwidth for name in ("b200", "h200", "h100", "a100", "a30", "a10", "t4")]
    assert bandwidth == sorted(bandwidth, reverse=True)
    assert len(set(bandwidth)) == len(bandwidth)
    speed = [find(name).fp16 for name in ("b200", "h100", "h100 pcie", "a100", "v100", "t4")]
    assert speed == sorted(speed, reverse=True)
    assert find("rtx 4080").fp32 > find("rtx 4080 laptop gpu").fp32


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RTX 3060", "rtx-3060-12gb"),
        ("rtx3060", "rtx-3060-12gb"),
        ("3060", "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "rtx-3060-laptop-6gb"),
        ("A100 80GB", "a100-80gb"),
        ("a100_80gb", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("h100", "h100-sxm-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada-48gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("CPU", "cpu"),
    ],
)
def test_names_are_found_however_they_are_written(written: str, name: str) -> None:
    assert find(written).name == name


@pytest.mark.parametrize("name", EVERY)
def test_every_name_and_alias_finds_its_device(name: str) -> None:
    device = devices()[name]
    assert {find(spelling).name for spelling in (name, name.upper(), *device.aliases)} == {name}


def test_unknown_name_gives_nearest_and_all_names() -> None:
    with pytest.raises(InputError) as caught:
        find("RTX 3061")
    message = str(caught.value)
    assert message.startswith('"RTX 3061" is not a known GPU; did you mean "rtx-3060-12gb"? (known: auto, cpu, a10,')
    assert all(name in message for name in EVERY)
    assert message.endswith("give its memory as budget instead, such as 8GiB")


@pytest.mark.parametrize("name", ["", "NVIDIA", "...", "a toaster of some kind"])
def test_names_that_resemble_nothing_have_no_hint(name: str) -> None:
    with pytest.raises(InputError, match="is not a known GPU \\(known: auto, cpu, a10,"):
        find(name)


def test_fact_without_source_is_refused() -> None:
    facts = devices()["t4"].model_dump()
    del facts["sources"]["context_bytes"]
    with pytest.raises(ValidationError, match="t4: no source for context_bytes; every fact that is given needs one"):
        Device(**facts)


def test_two_devices_cannot_share_a_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    t4 = devices()["t4"]
    twin = t4.model_copy(update={"name": "t4-twin", "aliases": ("tesla t4",)})
    monkeypatch.setattr(catalogue, "_accelerators", lambda: {"t4": t4, "t4-twin": twin})
    catalogue._spellings.cache_clear()
    try:
        with pytest.raises(ValueError, match='"tesla t4" names both t4 and t4-twin'):
            catalogue._spellings()
    finally:
        catalogue._spellings.cache_clear()


def test_unreadable_catalogue_is_an_error_with_its_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "devices.yaml").write_text("launch: {seconds: 1}\nlaunch: {seconds: 2}\n")
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"zoo/memory/devices\.yaml:1 launch: .* written again on line 2"):
        catalogue._facts.__wrapped__()


def test_measured_memory_is_told_from_nominal() -> None:
    assert find("t4").memory_bytes == 14912 * MIB
    assert find("a100-40gb").memory_bytes == 42298834944
    assert find("rtx 4070").memory_is_nominal
    assert not find("t4").memory_is_nominal


def test_rates_use_bf16_where_there_is_one_else_fp16() -> None:
    a100, t4 = find("a100"), find("t4")
    assert a100.rates_for() == Rates(19.5e12, 312e12, 2039e9, a100.launch_seconds, a100.host_link)
    assert t4.bf16 is None
    assert t4.rates_for().half == pytest.approx(65e12)


# ---------------------------------------------------------------------------------------------------- this machine


def test_without_accelerator_the_machine_is_cpu_with_its_available_memory(machine: Path) -> None:
    device = detect()
    assert device == find("auto") == find("cpu") == devices()["cpu"]
    assert (device.name, device.memory_bytes, device.host_link) == ("cpu", 64 * GIB, None)
    assert "4 cores, 64.0 GiB available" in device.title


def test_cpu_speeds_grow_with_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = detect().rates_for()
    monkeypatch.setattr(catalogue, "_cores", lambda: 8)
    eight = detect().rates_for()
    assert (eight.fp32, eight.half, eight.bandwidth) == pytest.approx(
        (2 * four.fp32, 2 * four.half, 2 * four.bandwidth)
    )
    assert eight.launch == four.launch


@pytest.mark.parametrize(
    ("cpuinfo", "faster"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16\n", True),
        ("flags\t\t: fpu avx512f avx512bw amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", False),
        ("flags\t\t: fpu avx2\n", False),
        ("Features\t: fp asimd\n", False),
        ("model name\t: of no help\n", False),
        (None, False),
    ],
)
def test_bf16_is_faster_than_fp32_only_with_instructions_for_it(
    machine: Path, cpuinfo: str | None, faster: bool
) -> None:
    if cpuinfo is not None:
        (machine / "_CPUINFO").write_text(f"processor\t: 0\n{cpuinfo}\nprocessor\t: 1\n{cpuinfo}")
    rates = detect().rates_for()
    assert (rates.half > rates.fp32) is faster


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert catalogue._cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    assert catalogue._cores() == 12


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text + "\n")


def test_container_limit_caps_the_memory(machine: Path) -> None:
    """Version 2: the job's own group has no limit, its parent allows 16 GiB, of which 3 are used, 1 by cached files."""
    (machine / "_OWN_CGROUPS").write_text("0::/slurm/job_7\n")
    groups = machine / "_CGROUPS" / "slurm"
    _group(groups / "job_7", max="max", current=str(GIB), stat="inactive_file 0")
    for name, text in {"max": 16 * GIB, "current": 3 * GIB, "stat": f"anon 5\ninactive_file {GIB}"}.items():
        (groups / f"memory.{name}").write_text(f"{text}\n")
    assert detect().memory_bytes == 14 * GIB


def test_container_limit_of_version_1_caps_the_memory(machine: Path) -> None:
    (machine / "_OWN_CGROUPS").write_text("9:cpu:/\n4:memory:/job\n0::/\n")
    _group(
        machine / "_CGROUPS" / "memory" / "job",
        limit_in_bytes=str(8 * GIB), usage_in_bytes=str(2 * GIB), stat=f"cache 9\ntotal_inactive_file {GIB}",
    )  # fmt: skip
    assert detect().memory_bytes == 7 * GIB


def test_known_accelerator_keeps_its_speeds_and_gets_the_memory_of_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    _gpu(monkeypatch, "NVIDIA GeForce RTX 4060 Ti", 7806 * MIB, 8)  # the card with 8 GB has the same name
    device = detect()
    assert (device.name, device.memory_bytes) == ("rtx-4060-ti-16gb", 7806 * MIB)
    assert device.memory_source == "torch.cuda.get_device_properties(0) of this machine"
    assert device.rates_for() == find("rtx 4060 ti").rates_for()
    assert find("auto") == device
    assert find("rtx 4060 ti").memory_bytes == 16 * GIB, "what was detected must not change the catalogue"


@pytest.mark.parametrize(
    ("name", "gib", "major", "hip", "like", "bf16"),
    [
        ("NVIDIA RTX PRO 9000", 47, 12, None, "rtx-a6000-48gb", True),
        ("Quadro RTX 5000", 15, 7, None, "t4", False),
        ("AMD Instinct MI999", 190, 9, "7.0", "mi300x", True),
    ],
)
def test_unknown_accelerator_says_whose_speed_is_assumed(
    monkeypatch: pytest.MonkeyPatch, name: str, gib: int, major: int, hip: str | None, like: str, bf16: bool
) -> None:
    _gpu(monkeypatch, name, gib * GIB, major, hip)
    device: Any = detect()
    assert device.memory_bytes == gib * GIB
    assert device.name == name.lower().replace(" ", "-")
    assert device.sources["fp32"] == f"assumed like {like}: {name} is not known"
    assert device.rates_for() == find(like).rates_for()
    assert (device.bf16 is not None) is bf16
    assert device.context_bytes is None
    assert set(device.sources) == {fact for fact in FACTS if getattr(device, fact) is not None}


# ----------------------------------------------------------------------------------------------------- packaging


def test_catalogue_is_read_from_a_zipped_package_without_torch(tmp_path: Path) -> None:
    """From a zip there is no file to open: only access as a resource works, as from any wheel. And no torch."""
    package = Path(catalogue.__file__).parents[1]
    code = f"""
import sys, zipfile
from pathlib import Path
package, archive = Path({str(package)!r}), {str(tmp_path / "zoo.zip")!r}
with zipfile.ZipFile(archive, "w") as target:
    for file in [*package.glob("*.py"), *package.glob("memory/*")]:
        if file.is_file():
            target.write(file, file.relative_to(package.parent))
sys.path.insert(0, archive)
import zoo.memory.devices
assert zoo.memory.devices.__file__.startswith(archive), zoo.memory.devices.__file__
assert zoo.memory.devices.find("t4").memory_bytes == {14912 * MIB}
assert "cpu" in zoo.memory.devices.devices()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
