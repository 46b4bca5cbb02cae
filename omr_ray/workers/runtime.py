"""Where actors live: Ray. The pools know this Protocol, so that the control plane can be measured over simulated actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import ray

from omr_ray.config.run import RunConfig
from omr_ray.workers.nodes import draining_nodes, node_of, room
from omr_ray.workers.placement import actor_options

PoolName = Literal["rollout", "reward"]


class Runtime(Protocol):
    """Handles and references are opaque; a reference can be the key of a mapping."""

    def starter(self, pool: PoolName, worker: type, config: RunConfig, *first: Any) -> Callable[[int], Any]:
        """What starts actor `index` of a pool, `worker(*first, config)`, and returns its handle, without waiting for it."""

    def call(self, handle: Any, method: str, args: Sequence[Any]) -> Any:
        """Send a call; returns the reference of its answer."""

    def put(self, value: Any) -> Any:
        """A reference that calls can carry instead of `value`, which is sent once."""

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Those that have been answered, as soon as one has; none after `timeout` seconds."""

    def get(self, reference: Any, timeout: float) -> Any:
        """The answer. Errors are Ray's."""

    def kill(self, handle: Any) -> None: ...

    def node(self, handle: Any) -> str | None:
        """Where an actor is; None while it waits for a machine with room for it."""

    def draining(self) -> Mapping[str, float]:
        """Nodes that are about to leave, and the unix second at which they are gone (infinity: not known)."""

    def room(self) -> str:
        """What the machines have, for messages."""


class RayRuntime:
    """Actors of the Ray cluster that this process is connected to."""

    def starter(self, pool: PoolName, worker: type, config: RunConfig, *first: Any) -> Callable[[int], Any]:
        # Now, not when one is replaced: that may be in a thread, to which Ray does not tell the placement group of its trial.
        options = [actor_options(config, pool, index) for index in range(getattr(config.workers, pool).count)]
        return lambda index: ray.remote(worker).options(**options[index]).remote(*first, config)

    def call(self, handle: Any, method: str, args: Sequence[Any]) -> Any:
        return getattr(handle, method).remote(*args)

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def wait(self, references: Sequence[Any], timeout: float) -> Sequence[Any]:
        first, rest = ray.wait(list(references), num_returns=1, timeout=timeout)
        return first + (ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else [])

    def get(self, reference: Any, timeout: float) -> Any:
        return ray.get(reference, timeout=timeout)

    def kill(self, handle: Any) -> None:
        ray.kill(handle)

    def node(self, handle: Any) -> str | None:
        return node_of(handle)

    def draining(self) -> Mapping[str, float]:
        return draining_nodes()

    def room(self) -> str:
        return room()
