"""The process-wide settings of pycaffe: CPU or GPU mode, the device, the random seed; the limit on memory; timers."""

from __future__ import annotations

import os
import time
import uuid

import torch

from .errors import CaffeError

FLOAT16_LOSS_SCALE = 1024.0  # by which gradients are larger while float16 holds them, which has no small numbers

_mode = "cpu"
_device_id = 0
_seed: int | None = None
_memory_limit = 2**31  # bytes: where a .caffemodel ends, since protobuf's messages do

# OpenMP's threads do not come along into a forked process (`multiprocessing.Pool`), and it would wait for them without
# end; with one thread it asks for none.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def set_mode_cpu() -> None:
    """Nets and solvers made from now on compute on the CPU (the default)."""
    global _mode
    _mode = "cpu"


def set_mode_gpu() -> None:
    """Nets and solvers made from now on compute on the GPU that `set_device` chose.

    Raises CaffeError where PyTorch finds no CUDA device.
    """
    global _mode
    if not torch.cuda.is_available():
        raise CaffeError(
            "GPU mode: PyTorch finds no CUDA device here (the CPU build, no GPU, or no driver); "
            "expected one, or CPU mode: caffe.set_mode_cpu(), or the device cpu"
        )
    _mode = "gpu"


def set_device(device_id: int) -> None:
    """Choose the GPU that GPU mode uses, counted from 0."""
    global _device_id
    if device_id < 0:
        raise CaffeError(f"set_device: {device_id} is not a device number; expected 0 or more")
    _device_id = int(device_id)


def set_random_seed(seed: int) -> None:
    """Seed of the fillers and random layers of every net made from now on."""
    global _seed
    _seed = int(seed)


def current_device() -> torch.device:
    """The device on which a net made now computes."""
    return torch.device("cpu") if _mode == "cpu" else torch.device("cuda", _device_id)


def next_seed() -> int:
    """The seed for a new net: from `set_random_seed` (then advanced, so that nets differ), else from the system."""
    global _seed
    if _seed is None:
        return torch.seed() & 0x7FFFFFFF
    _seed += 1
    return _seed - 1


def set_memory_limit(size: int) -> None:
    """How many bytes the parameters of a net made from now on may take (default: 2 GiB, what a .caffemodel can hold).

    A prototxt of a few bytes may ask for any number; one above the limit is a CaffeError that names the layer. The
    limit holds as well for the constants of a DummyData layer and for an image that an ImageData layer makes larger.
    """
    global _memory_limit
    if size < 0:
        raise CaffeError(f"set_memory_limit: {size} bytes; expected 0 or more")
    _memory_limit = int(size)


def memory_limit() -> int:
    """What `set_memory_limit` set."""
    return _memory_limit


def use_device(name: str) -> torch.device:
    """Set mode and device from a name and return the device.

    Parameters
    ----------
    name: `auto` (a GPU where there is one), `cpu`, `cuda`, or `cuda:N`.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and (kind == "cpu" or not number.isdigit())):
        raise CaffeError(f"device {name!r} is not known; expected auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        set_mode_cpu()
    else:
        set_mode_gpu()
        if int(number or 0) >= torch.cuda.device_count():
            raise CaffeError(f"device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA device(s)")
        set_device(int(number or 0))
    return current_device()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device. A GPU takes it when it comes to it, and nobody waits until then."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype in which convolutions and inner products are computed, or None for float32.

    Parameters
    ----------
    precision: `auto` (bfloat16 where the processor multiplies it in hardware, else fp32), `fp32`, `bf16`, `fp16`.

    Raises CaffeError for another name, and for `fp16` on a processor that has no arithmetic for it.
    """
    name = precision.lower()
    if name == "fp16" and device.type == "cpu" and not _cpu_flag("avx512_fp16", "amx_fp16"):
        raise CaffeError(
            "precision fp16: this processor has no float16 arithmetic, and imitates it a hundred times slower than "
            "float32; expected auto, fp32 or bf16 here"
        )
    if name == "auto":
        name = "bf16" if _has_fast_bfloat16(device) else "fp32"
    try:
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    except KeyError:
        raise CaffeError(f"precision {precision!r} is not known; expected auto, fp32, bf16 or fp16") from None


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and _cpu_flag("avx512_bf16", "amx_bf16")


def _cpu_flag(*flags: str) -> bool:
    try:
        with open("/proc/cpuinfo") as f:
            present = next((line.split() for line in f if line.startswith(("flags", "Features"))), [])
    except FileNotFoundError:  # not Linux: no way to know, so the safe answer
        return False
    return any(flag in present for flag in flags)


# Training by several processes, a GPU each, as pycaffe does with NCCL: here there is always one.


def has_nccl() -> bool:
    """Whether several GPUs can train together: no."""
    return False


def solver_count() -> int:
    """How many processes train together: 1."""
    return 1


def solver_rank() -> int:
    """This process's number among them: 0."""
    return 0


def set_solver_count(count: int) -> None:
    """Raises CaffeError for any number of processes but 1."""
    if count != 1:
        raise CaffeError(
            f"set_solver_count: {count} processes cannot train together; expected 1. For the same training on one GPU, "
            f"multiply the net's batch_size, or the solver's iter_size, by {count}"
        )


def set_solver_rank(rank: int) -> None:
    """Raises CaffeError for any number but 0."""
    if rank != 0:
        raise CaffeError(f"set_solver_rank: {rank} is no number of a process where there is one; expected 0")


def set_multiprocess(multiprocess: bool) -> None:
    """Accepted from scripts that say how they would run on several GPUs; one process trains either way."""


class NCCL:
    """What pycaffe's scripts for several GPUs exchange gradients with. One process has nobody to exchange them with:
    such a script runs here on one GPU.

    Parameters
    ----------
    solver: the solver.
    uid: `NCCL.new_uid()`, the same for all processes.
    """

    def __init__(self, solver: object, uid: bytes) -> None:
        self.solver, self.uid = solver, uid

    @staticmethod
    def new_uid() -> bytes:
        """A name for a group of processes."""
        return uuid.uuid4().bytes

    def bcast(self) -> None:
        """The first process's weights, for all."""

    def __call__(self, layer: int | None = None) -> None:
        """As a callback: the mean of all processes' gradients."""


class Timer:
    """A stop watch, for the work of the device as well; pycaffe's."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._seconds = 0.0

    @staticmethod
    def _now() -> float:
        if _mode == "gpu":
            torch.cuda.synchronize(_device_id)
        return time.perf_counter()

    def start(self) -> None:
        """Begin; a watch that runs goes on as it is."""
        if self._start is None:
            self._start = self._now()

    def stop(self) -> None:
        """End."""
        if self._start is not None:
            self._seconds, self._start = self._now() - self._start, None

    @property
    def ms(self) -> float:
        """Milliseconds from start to stop; stops a watch that runs. 0 before the first start."""
        self.stop()
        return 1e3 * self._seconds
