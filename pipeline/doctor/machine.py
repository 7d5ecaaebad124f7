"""This machine: open files, shared memory, memory, GPUs, its clock."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.doctor.finding import Finding, fault, ok, warn

GIB = 2**30
WANTED_FILES = 8192
"""What Ray recommends when it warns of a limit that is too low (`ray.init`)."""
FILES_THAT_RAY_TAKES = 65536
"""Ray raises its own soft limit up to this, where the hard limit lets it."""
OBJECT_STORE_SHARE = 0.3
"""Of the memory that is available: what Ray gives to its object store, which lies in shared memory."""
LARGEST_OBJECT_STORE = 200e9
KILL_SHARE = 0.95
"""Of the memory: Ray kills workers beyond (`RAY_memory_usage_threshold`)."""
TIGHT_SHARE = 0.8
CLOCK_WARNING_S, CLOCK_FAULT_S = 2.0, 60.0


def check_machine() -> list[Finding]:
    """Return what is wrong with this machine's limits and memory."""
    import resource

    import psutil

    memory = psutil.virtual_memory()
    findings = [check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))]
    if Path("/dev/shm").is_dir():
        findings.append(check_shared_memory(psutil.disk_usage("/dev/shm").free, memory.available))
    findings.append(check_memory(memory.available, memory.total))
    return findings


def check_open_files(soft: int, hard: int) -> Finding:
    """Return whether processes of Ray may open enough files.

    Args:
        soft: The limit now; -1 (`RLIM_INFINITY`): none.
        hard: What Ray may raise it to; -1: none.
    """
    unlimited = -1
    if unlimited in (soft, hard):
        return ok("ulimit -n", "no limit" if soft == unlimited else f"{soft}, which Ray raises")
    limit = max(soft, min(hard, FILES_THAT_RAY_TAKES))
    if limit >= WANTED_FILES:
        return ok("ulimit -n", f"{soft}" + (f", which Ray raises to {limit}" if limit > soft else ""))
    return warn(
        "ulimit -n",
        f"{limit} open files at most",
        f"{WANTED_FILES}; with fewer, Ray loses connections",
        f"ulimit -n {FILES_THAT_RAY_TAKES} before `ray start`, as in cluster.yaml, or raise nofile in limits.conf",
    )


def check_shared_memory(free: int, memory_available: int) -> Finding:
    """Return whether Ray's object store fits into /dev/shm.

    Args:
        free: Bytes free in it.
        memory_available: Bytes that processes may still take on this machine.
    """
    store = int(min(OBJECT_STORE_SHARE * memory_available, LARGEST_OBJECT_STORE))
    if free >= store:
        return ok("/dev/shm", f"{free / GIB:.1f} GiB free; Ray's object store takes up to {store / GIB:.1f}")
    return warn(
        "/dev/shm",
        f"{free / GIB:.2f} GiB free",
        f"{store / GIB:.1f} GiB, what Ray's object store takes ({OBJECT_STORE_SHARE:.0%} of the available memory); it "
        "would use the disk",
        f"docker run --shm-size={store / 1e9:.1f}gb, or mount -o remount,size=… /dev/shm, or a smaller "
        "--object-store-memory for `ray start`",
    )


def check_memory(available: int, total: int) -> Finding:
    """Return whether there is memory to work in.

    Args:
        available: Bytes that processes may still take.
        total: Bytes of the machine.
    """
    used = 1 - available / total
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB available"
    if used <= TIGHT_SHARE:
        return ok("memory", found)
    report = fault if used > KILL_SHARE else warn
    return report(
        "memory",
        found,
        f"less than {TIGHT_SHARE:.0%} taken before a run starts; beyond {KILL_SHARE:.0%} Ray kills workers",
        "end what takes it, or use a larger machine",
    )


def read_gpus() -> list[int]:
    """Return the bytes of memory of each GPU that torch sees here."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]


def check_gpus(memory: Sequence[int], wanted: float, is_local: bool) -> Finding:
    """Return whether there are as many GPUs as one teacher or training worker asks for.

    Args:
        memory: Bytes of each GPU of this machine.
        wanted: The most that is asked for in one piece.
        is_local: Whether actors run on this machine.
    """
    found = f"{len(memory)}: {', '.join(f'{m / GIB:.1f} GiB' for m in memory)}" if memory else "none on this machine"
    if len(memory) >= wanted:
        return ok("GPUs", found)
    if not is_local:
        return ok("GPUs", f"{found}; {wanted:g} in one piece are asked for, of the cluster, which was not looked at")
    return fault(
        "GPUs",
        found,
        f"{wanted:g} GPUs of one machine",
        "name a cluster (scale=cluster), or lower teacher.gpus and scale.training.gpus_per_worker, or install the "
        "driver and a CUDA build of torch",
    )


def check_clock(what: str, ahead_s: float) -> Finding:
    """Return whether two clocks agree.

    Args:
        what: Whose clock it is.
        ahead_s: Seconds by which that clock is ahead of this machine's.
    """
    subject = f"clock: {what}"
    difference = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
    if abs(ahead_s) <= CLOCK_WARNING_S:
        return ok(subject, f"within {CLOCK_WARNING_S:g} s of this machine's")
    report = fault if abs(ahead_s) > CLOCK_FAULT_S else warn
    return report(
        subject,
        difference,
        f"at most {CLOCK_WARNING_S:g} s apart; signatures and tokens are refused, and times of steps are wrong",
        "let both machines follow a time server (chrony, systemd-timesyncd): timedatectl set-ntp true",
    )
