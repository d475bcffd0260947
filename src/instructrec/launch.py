"""Whether a launcher (`torchrun`, `accelerate launch`, `mpirun`) has started this process as one of several."""

from __future__ import annotations

import os

# The names that accelerate reads, in its order.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def launched() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are; (0, 1) where nobody has launched several."""
    return _number(_RANK, 0), max(1, _number(_COUNT, 1))


def on(name: str) -> bool:
    """Whether a switch of accelerate's is on in the environment."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes", "on", "y", "t")


def only_one_of_several() -> bool:
    """True where `accelerate launch --cpu` was asked for several processes: without MPI it starts one, and says
    nothing. Then it has set the port at which they would have met."""
    return on("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ and not any(name in os.environ for name in _COUNT)


def _number(names: tuple[str, ...], otherwise: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdigit())
    return int(next(found, otherwise))
