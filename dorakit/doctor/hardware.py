"""What computes: torch and its device, the driver, bitsandbytes' kernels, memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

from dorakit.doctor.finding import Finding
from dorakit.memory import gib, host_memory

_REINSTALL_TORCH = "uv pip install --reinstall torch --torch-backend=auto"
_LITTLE_MEMORY = 4 << 30  # bytes
_NO_MEMORY = 1 << 30
# Half of the widest gap between neighbouring NF4 values, -1 and -0.696, of a block's largest weight.
_NF4_ERROR = 0.152


def check_torch() -> Iterator[Finding]:
    """The build of torch against the driver and the device, with a product on that device."""
    import torch

    from dorakit.model.load import pick_device, pick_dtype

    built = f"torch {torch.__version__}"
    cuda = torch.version.cuda
    cards = _cards()
    device = pick_device()
    if device.type == "cuda":
        name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        on_it = torch.ones(64, 64, device=device, dtype=pick_dtype("auto"))
        if float((on_it @ on_it)[0, 0]) != 64:
            yield Finding("fail", "torch", f"{built}: a product on {name} is wrong", _REINSTALL_TORCH)
        else:
            yield Finding("ok", "torch", f"{built} with CUDA {cuda} on {name} (compute capability {major}.{minor})")
    elif cards and cuda is None:
        yield Finding("warn", "torch", f"{built} is built without CUDA, so {cards[0]} is not used", _REINSTALL_TORCH)
    elif cards:
        yield Finding(
            "fail",
            "torch",
            f"{built} with CUDA {cuda} finds no device, nvidia-smi does: {cards[0]}",
            f"update the driver for CUDA {cuda}, or {_REINSTALL_TORCH}",
        )
    else:
        yield Finding("ok", "torch", f"{built}; no GPU: models train on the CPU, {torch.get_num_threads()} threads")
    if cards and device.type == "cuda":
        yield Finding("ok", "driver", "; ".join(cards))
    if pick_dtype("auto") == torch.float32:
        yield Finding("ok", "bfloat16", f"not computed by this {device.type}: dtype auto is float32")
    else:
        yield Finding("ok", "bfloat16", "dtype auto is bfloat16")


def check_bitsandbytes() -> Iterator[Finding]:
    """The native library, and a round trip through NF4 on the device in use."""
    import torch

    from dorakit.model.load import pick_device
    from dorakit.model.nf4 import NF4Format, NF4Linear, native_library

    device = pick_device()
    library, has_cuda = native_library()
    if library is None or (device.type == "cuda" and not has_cuda):
        what = "no native library" if library is None else f"{library} is built without CUDA"
        yield Finding("fail", "bitsandbytes", what, "pip install --force-reinstall --no-deps bitsandbytes")
        return
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    form = NF4Format(double_quant=False)
    layer = NF4Linear.from_dense(weight, None, form)
    dense = layer.dequantize()
    error = float(((dense - weight).abs() / weight.abs().amax(dim=1, keepdim=True)).max())
    if error > _NF4_ERROR or not torch.equal(NF4Linear.from_dense(dense, None, form).weight, layer.weight):
        yield Finding(
            "fail",
            "bitsandbytes",
            f"{library}: weights come back from NF4 with an error of {error:.2f} of the largest; {_NF4_ERROR} is the most",
            "pip install --force-reinstall --no-deps bitsandbytes",
        )
    else:
        yield Finding("ok", "bitsandbytes", f"{library}; NF4 round trip on {device.type}: error {error:.3f}")


def check_memory() -> Iterator[Finding]:
    """What is free, of the machine or of the container, and of the GPU."""
    import torch

    from dorakit.model.load import pick_device

    free, total = host_memory()
    yield _of_memory("memory", free, total, "close other programs, or use a machine with more")
    if pick_device().type == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield _of_memory("GPU memory", free, total, "nvidia-smi shows which process holds it")


def _of_memory(about: str, free: int, total: int, mend: str) -> Finding:
    says = f"{gib(free)} of {gib(total)} free"
    if free < _LITTLE_MEMORY:
        return Finding("fail" if free < _NO_MEMORY else "warn", about, says, mend)
    return Finding("ok", about, says)


def _cards() -> list[str]:
    """NVIDIA cards with driver, as nvidia-smi names them; none where it is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [line.replace(", ", ", driver ") for line in lines if line.strip()]
