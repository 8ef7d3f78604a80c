"""The machine around the card: memory, disk, open files, threads, and the environment variables that hurt."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tunesmith.verbs.doctor.finding import Finding
from tunesmith.verbs.doctor.needs import base_bytes, run_bytes

GIB = 1 << 30
_LEAST_MEMORY = 4 * GIB  # importing torch and transformers and reading one large tensor
_LEAST_DISK = 2 * GIB
_LEAST_SHARED = GIB
_LEAST_FILES = 1024
_SPINNING = {"OMP_WAIT_POLICY": "active", "KMP_BLOCKTIME": "infinite", "GOMP_SPINCOUNT": "infinity"}


def findings(runs_dir: Path, cards: int) -> list[Finding]:
    """All checks of this machine; `cards` is the number that torch can use."""
    cache = hub_cache()
    found = [memory(total_memory(), available_memory())]
    if sys.platform == "linux":
        found.append(shared_memory(_free(Path("/dev/shm")), cards))
    found += disk(
        existing(runs_dir).resolve(),
        _free(existing(runs_dir)),
        existing(cache).resolve(),
        _free(existing(cache)),
        existing(runs_dir).stat().st_dev == existing(cache).stat().st_dev,
        os.access(existing(runs_dir), os.W_OK),
    )
    found.append(open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    found += threads(usable_cores(), os.getloadavg()[0], os.environ)
    found += variables(os.environ, cards)
    return found


# ---- judgements


def memory(total: int, available: int) -> Finding:
    """System memory, the container's limit included."""
    words = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if available < _LEAST_MEMORY:
        return Finding(
            "memory",
            "warn",
            f"{words}; loading takes {_LEAST_MEMORY / GIB:.0f}",
            "ps aux --sort=-rss | head   (who has it?)",
        )
    if total < base_bytes():
        words += f"; an 8B model merged without a large card takes {base_bytes() / GIB:.0f} (predicted)"
        return Finding("memory", "ok", words, "export: {merged: false}   (keeps the adapter alone)")
    return Finding("memory", "ok", words)


def shared_memory(free: int, cards: int) -> Finding:
    """/dev/shm: several cards talk through it; a container gets 64 MiB unless told otherwise."""
    words = f"{free / GIB:.2f} GiB free in /dev/shm"
    if free < _LEAST_SHARED and cards > 1:
        return Finding(
            "shared memory", "warn", f"{words}; {cards} cards talk through it", "docker run --ipc=host …"
        )
    return Finding("shared memory", "ok", words)


def disk(
    runs: Path, runs_free: int, cache: Path, cache_free: int, shared: bool, writable: bool
) -> list[Finding]:
    """Free space for runs and downloads, beside what a QLoRA run of an 8B model takes."""
    found = []
    if not writable:
        found.append(
            Finding(
                "disk: runs", "fail", f"{runs} may not be written", f"chmod u+w {runs}, or --runs-dir DIR"
            )
        )
    together = base_bytes() if shared else 0
    for name, place, free, need, fix in (
        ("disk: runs", runs, runs_free, run_bytes() + together, "--runs-dir DIR on a larger disk"),
        ("disk: hub", cache, cache_free, base_bytes(), "export HF_HOME=DIR on a larger disk"),
    ):
        with_base = " with its base" if need > run_bytes() else ""
        what = f"the 16-bit base of an 8B run takes {need / GIB:.0f}" if name == "disk: hub" else ""
        what = what or f"a QLoRA run of 8B takes up to {need / GIB:.0f}{with_base}"
        words = f"{free / GIB:.1f} GiB free in {place}; {what} (predicted)"
        if free < _LEAST_DISK:
            found.append(Finding(name, "fail", words, fix))
        else:
            found.append(Finding(name, "warn" if free < need else "ok", words, fix if free < need else None))
    return found


def open_files(limit: int) -> Finding:
    """How many files this process may have open."""
    if limit != resource.RLIM_INFINITY and limit < _LEAST_FILES:
        return Finding("open files", "warn", f"at most {limit}", f"ulimit -n {4 * _LEAST_FILES}")
    return Finding("open files", "ok", "no limit" if limit == resource.RLIM_INFINITY else f"at most {limit}")


def threads(cores: int, load: float, environment: Mapping[str, str]) -> list[Finding]:
    """More threads than cores, or threads that wait by spinning, slow a CPU run many times over."""
    given = environment.get("OMP_NUM_THREADS", "")
    wanted = f"export OMP_NUM_THREADS={cores}"
    found = []
    if given.isdecimal() and int(given) > cores:
        words = f"OMP_NUM_THREADS={given} on {cores} cores: threads wait for each other"
        found.append(Finding("threads", "warn", words, wanted))
    elif not given and (os.cpu_count() or cores) > cores:
        words = f"{cores} of the machine's {os.cpu_count()} cores may be used, but libraries count all"
        found.append(Finding("threads", "warn", words, wanted))
    elif not given and load > 1.5 * cores:
        words = f"{cores} cores have {load:.1f} processes waiting: two that compute side by side spin at each other"
        found.append(Finding("threads", "warn", words, "export OMP_NUM_THREADS=1, or wait for the other one"))
    else:
        found.append(
            Finding("threads", "ok", f"{cores} cores" + (f", OMP_NUM_THREADS={given}" if given else ""))
        )
    for name, value in _SPINNING.items():
        if environment.get(name, "").lower() == value:
            words = f"{name}={environment[name]}: waiting threads burn whole cores"
            found.append(Finding("threads", "warn", words, f"unset {name}"))
    return found


def variables(environment: Mapping[str, str], cards: int) -> list[Finding]:
    """Variables that are set and known to hurt."""
    found = []

    def hurts(name: str, words: str) -> None:
        found.append(Finding("environment", "warn", f"{name}={environment[name]}: {words}", f"unset {name}"))

    if environment.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no"):
        hurts("TOKENIZERS_PARALLELISM", "tokens are made on one core")
    if environment.get("CUDA_LAUNCH_BLOCKING") == "1":
        hurts("CUDA_LAUNCH_BLOCKING", "the host waits for each kernel; training takes several times as long")
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if cards and environment.get(name) and "expandable_segments:True" not in environment[name]:
            hurts(name, "without expandable_segments:True a tenth of the card's memory is lost in gaps")
    return found


# ---- facts


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def total_memory() -> int:
    """Bytes of memory, or what a container may have of them."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, _limit() or total)


def available_memory() -> int:
    """Bytes that a new process can have."""
    free = total_memory()
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return min(free, total_memory())
    return min(free, total_memory() - used) if _limit() else free


def _limit() -> int | None:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):
        return None  # no container, or "max"


def hub_cache() -> Path:
    """Where downloads of the hub lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _free(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0
