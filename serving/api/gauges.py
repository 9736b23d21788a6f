"""What the replicas of an endpoint use of this machine, in the contract's names for it.

`cpu_usage_percentage`: 100 is one processor; the mean over an entity's replicas since the export
before, at first since their start. `mem_usage_percentage`: of what their workload_type may hold;
the mean as well. Replicas of other machines have no part in either.
"""

import threading
from collections.abc import Collection, Mapping
from typing import Any

from serving import exposition, processes, replica_state
from serving.controller import wanted

LEAST_SECONDS = 1.0  # exports closer together than this share their figures' beginning


class Gauges:
    """The figures of one server, and when each replica was looked at before. For any thread."""

    def __init__(self, worker_memory_bytes: int) -> None:
        """worker_memory_bytes: the most for every replica; 0: by workload_type."""
        self._worker_memory_bytes = worker_memory_bytes
        self._before: dict[processes.Identity, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def text(
        self,
        endpoint: str,
        entities: Collection[Mapping[str, Any]],
        replicas: Collection[replica_state.Replica],
        now: float,
    ) -> str:
        """Exposition text. replicas: of this endpoint; now: monotonic seconds."""
        cpu: dict[exposition.Named, float] = {}
        memory: dict[exposition.Named, float] = {}
        used = usage(replicas)
        for entity in entities:
            key = endpoint, entity["name"]
            mine = [r for r in replicas if r.served_entity_id == entity["id"]]
            known = [(each, used[each.pid]) for each in living(mine) if each.pid in used]
            shares = [self._share(each, spent, now) for each, spent in known]
            most = wanted.memory_bytes(entity, self._worker_memory_bytes)
            sizes = [spent.rss_bytes / most for _, spent in known]
            if shares:
                cpu[key] = round(100 * sum(shares) / len(shares), 3)
                memory[key] = round(100 * sum(sizes) / len(sizes), 3)
        lines = [*exposition.gauge("cpu_usage_percentage", cpu)]
        lines += exposition.gauge("mem_usage_percentage", memory)
        return "\n".join(lines) + "\n"

    def _share(self, replica: processes.Identity, used: processes.Usage, now: float) -> float:
        """Processors that a replica kept busy, since it was looked at before."""
        with self._lock:
            spent, since = self._before.get(replica) or (0.0, now - processes.age_seconds(replica))
            if now - since >= LEAST_SECONDS:
                self._before[replica] = used.cpu_seconds, now
            for gone in [each for each in self._before if not processes.alive(each)]:
                del self._before[gone]
        return max(0.0, used.cpu_seconds - spent) / max(now - since, LEAST_SECONDS)


def usage(replicas: Collection[replica_state.Replica]) -> dict[int, processes.Usage]:
    """What the process groups of replicas use, by pid; without those that run elsewhere, or whose
    pid is a stranger's by now."""
    here = {each.pid for each in living(replicas)}
    return processes.usage(here) if here else {}


def living(replicas: Collection[replica_state.Replica]) -> list[processes.Identity]:
    """The replicas that are processes of this machine, and alive."""
    known = [
        processes.Identity(each.pid, each.pid_start)
        for each in replicas
        if each.pid is not None and each.pid_start is not None
    ]
    return [each for each in known if processes.alive(each)]
