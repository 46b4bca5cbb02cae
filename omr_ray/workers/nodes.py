"""The machines of the cluster, and which actor is on which of them: what Ray's GCS knows.

Ray's state API asks the dashboard, which a cluster need not have; Serve finds draining nodes as it is done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import state


def node_of(actor: Any) -> str | None:
    """The node on which an actor has a process; None while Ray looks for one with room for it.

    The table has the address of the node that is asked for room long before it has some; the process tells.
    """
    entry = state.actor_table(actor._actor_id.hex())
    if not entry or entry["State"] not in ("PENDING_CREATION", "ALIVE") or not entry["Pid"]:
        return None  # of one that restarts, all of this is what it was before
    return entry["Address"]["NodeID"]


def draining_nodes() -> Mapping[str, float]:
    """Nodes that are about to leave, and when: unix seconds, infinity where nobody said."""
    return {node: milliseconds / 1e3 if milliseconds else float("inf") for node, milliseconds in state.get_draining_nodes().items()}


def room() -> str:
    """What the cluster has, for messages: "1 of 4 CPU and 0 of 0 GPU free on 2 nodes"."""
    free, total = ray.available_resources(), ray.cluster_resources()
    kinds = " and ".join(f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name in ("CPU", "GPU"))
    return f"{kinds} free on {sum(node['Alive'] for node in ray.nodes())} nodes"
