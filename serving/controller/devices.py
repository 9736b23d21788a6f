"""GPUs: how many a workload takes, which this machine has, which are free."""

from collections.abc import Collection
from pathlib import Path

NEEDED = {
    "GPU_SMALL": 1,
    "GPU_MEDIUM": 1,
    "GPU_LARGE": 1,
    "GPU_XLARGE": 1,
    "GPU_XLARGE_8": 8,
    "MULTIGPU_MEDIUM": 4,
}
DRIVER = Path("/proc/driver/nvidia/gpus")


def needed(workload_type: object) -> int:
    """GPUs of one replica of this workload; 0 for the CPU kinds."""
    return NEEDED.get(str(workload_type), 0)


def present(driver: Path = DRIVER) -> int:
    """GPUs that the driver of this machine has."""
    return sum(1 for _ in driver.iterdir()) if driver.is_dir() else 0


def free(count: int, held: Collection[int]) -> list[int]:
    """Numbers of the GPUs that no replica has. count: those of the machine."""
    return [number for number in range(count) if number not in held]
