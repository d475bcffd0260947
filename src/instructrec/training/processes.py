"""The processes of one run: what they tell each other, gradients added up, and errors that end all of them.

Every process has the rows and the model and takes its share of each step (`share`). They talk over sockets of the
processor (gloo) also where gradients travel between GPUs (nccl): there, a process that has died is noticed at once.
"""

from __future__ import annotations

import atexit
import json
import re
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray

from .. import console
from ..errors import EnvironmentFault, InputError, InstructRecError
from ..launch import launched, on, only_one_of_several
from ..models.backbone import device
from .sharding import is_cut, wanted

# What accelerate's launcher may be asked for.
_UNSUPPORTED = {
    "DEEPSPEED": "DeepSpeed",
    "MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "tensor, context or sequence parallelism",
}
# What torch says of another process that is gone.
_LOST = re.compile(r"connection|closed by|timed? ?out|socket|abort", re.IGNORECASE)

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # others wait while the first writes a checkpoint or a report
_FRAME = 1024  # bytes of a message that travel at once; more need a second round
_BUCKET = 1 << 24  # elements of gradients that travel at once: few messages, little memory


class Elsewhere(InstructRecError):
    """Another process of the run has failed; `exit_code` is that of its error."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Gone(EnvironmentFault):
    """Another process of the run can't be reached: it was killed, or its machine is lost."""


class Processes:
    """The processes of a run, seen from one of them. Alone, nothing here costs anything.

    rank: its number.  count: how many there are.  sharded: weights are cut up (`training.sharding`), so that all have
    to call the model equally often.
    """

    def __init__(self, rank: int = 0, count: int = 1, control: Any = None, sharded: bool = False) -> None:
        self.rank, self.count, self._control, self.sharded = rank, count, control, sharded
        self._in_step = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes, prints and holds the lock."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Every count-th of the items, of work that needs the model; all of them where weights are cut up."""
        return items if self.count == 1 or self.sharded else items[self.rank :: self.count]

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """While this lasts, the model is called. Where weights are cut up, the others then wait inside the model and
        can be told nothing: an error ends this process, and that ends them."""
        self._in_step = self.sharded
        try:
            yield
        except RuntimeError as error:
            if self.sharded and _LOST.search(str(error)):
                raise _gone(self.count, error) from error
            raise
        self._in_step = False

    def exchange(self, value: T) -> list[T]:
        """What each process gives here (JSON), by rank. All have to call it, in the same order.

        Raises Elsewhere when another has failed (`fail`), Gone when another can't be reached.
        """
        return [value] if self.count == 1 else self._heard({"value": value})

    def of_main(self, value: T) -> T:
        """What the first process gives here."""
        return self.exchange(value)[0]

    def fail(self, error: Exception) -> None:
        """Tell the others, at the place where they wait, that this process ends with an error, or hear of theirs."""
        with suppress(ValueError):  # not the main thread: signals are somebody else's
            # The launcher sends SIGTERM as soon as one process has ended, which would cut off the first one's words.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, Gone) or self._in_step:
            return
        if not isinstance(error, Elsewhere):
            with suppress(Elsewhere):
                self._heard({"error": _text(error), "code": _exit_code(error)})
        console.others_know()

    def add_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by the sum of all processes' gradients. A parameter that got none anywhere keeps none:
        the optimizer passes over it, as it does with one process."""
        import torch.distributed as dist

        if self.count == 1:
            return
        parameters = [parameter for parameter in parameters if not is_cut(parameter)]  # torch adds those up
        with _reaching(self.count):
            some = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
            dist.all_reduce(some, dist.ReduceOp.MAX, group=self._control)
            moved = [parameter for parameter, any_ in zip(parameters, some.tolist(), strict=True) if any_]
            for parameter in moved:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
            for bucket in _buckets(gradients):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                dist.all_reduce(flat)
                for gradient, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))

    def take_over(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give all processes the first one's weights: another processor may have drawn or read them otherwise."""
        import torch.distributed as dist

        if self.count > 1:
            with _reaching(self.count):
                for parameter in parameters:
                    if is_cut(parameter):
                        continue
                    dist.broadcast(parameter.data, 0)

    def _heard(self, message: Any) -> list[Any]:
        told = self._gather(message)
        for rank, heard in enumerate(told):
            if "error" in heard and rank != self.rank:
                raise Elsewhere(f"process {rank} of {self.count}: {heard['error']}", heard["code"])
        return [heard.get("value") for heard in told]

    def _gather(self, message: Any) -> list[Any]:
        """JSON from every process: a frame with the length in front, and a second round for what is longer."""
        import torch.distributed as dist

        body = json.dumps(message).encode()
        whole = len(body).to_bytes(8, "little") + body
        with _reaching(self.count):
            frames = self._all(whole, _FRAME, dist)
            sizes = [int.from_bytes(frame[:8], "little") + 8 for frame in frames]
            if max(sizes) > _FRAME:
                rest = self._all(whole[_FRAME:], max(sizes) - _FRAME, dist)
                frames = [frame + more for frame, more in zip(frames, rest, strict=True)]
        return [json.loads(frame[8:size]) for frame, size in zip(frames, sizes, strict=True)]

    def _all(self, part: bytes, width: int, dist: Any) -> list[bytes]:
        own = torch.frombuffer(bytearray(part[:width].ljust(width, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own, group=self._control)
        return [one.numpy().tobytes() for one in parts]


ALONE = Processes()


@contextmanager
def together() -> Iterator[Processes]:
    """The processes that a launcher has started, or this one alone. An error in one of them ends all of them.

    Raises InputError for what a launcher was asked for and can't be had.
    """
    group = _joined()
    try:
        yield group
    except Exception as error:
        if group.count > 1:
            group.fail(error)
        raise


def share(batches: Sequence[list[int]], lengths: Sequence[int] | NDArray[Any], count: int) -> list[list[list[int]]]:
    """Micro-batches of a step dealt to `count` processes: each row once.

    The largest are halved until all processes have equally many; with fewer rows than processes, some have none.
    """
    pieces = list(batches)
    while len(pieces) % count:
        sizes = [len(piece) * max(lengths[row] for row in piece) if len(piece) > 1 else 0 for piece in pieces]
        largest = sizes.index(max(sizes))
        if not sizes[largest]:
            break
        piece = pieces[largest]
        middle = (len(piece) + 1) // 2
        pieces[largest : largest + 1] = [piece[:middle], piece[middle:]]
    return [pieces[rank::count] for rank in range(count)]


def _joined() -> Processes:
    rank, count = launched()
    if count == 1:
        if only_one_of_several():
            console.warn(
                "accelerate launch --cpu starts only one process (without MPI); several on processors: "
                "torchrun --nproc-per-node 2 -m instructrec tune …"
            )
        return ALONE
    for name, what in _UNSUPPORTED.items():
        if on(f"ACCELERATE_USE_{name}"):
            raise InputError(f"launcher: {what} is not supported (want plain processes, or --use_fsdp)")
    group = _met(rank, count)
    console.others_know(False)
    return group


@cache
def _met(rank: int, count: int) -> Processes:
    import torch.distributed as dist
    from accelerate import PartialState

    sharded = wanted()
    try:
        with warnings.catch_warnings():
            # Cores are shared out among the processes where OMP_NUM_THREADS does not say how many each may use; that
            # this is so would be said by each of them.
            warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
            state = PartialState(cpu=device().type == "cpu")
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(f"launcher: the {count} processes can't reach each other: {why[:200]}") from error
    if (state.process_index, state.num_processes) != (rank, count):
        found = f"process {state.process_index} of {state.num_processes}"
        raise EnvironmentFault(f"launcher: the environment says process {rank} of {count}, torch says {found}")
    atexit.register(dist.destroy_process_group)
    return Processes(rank, count, control, sharded)


@contextmanager
def _reaching(count: int) -> Iterator[None]:
    """What torch says when another process does not answer, as Gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise _gone(count, error) from error


def _gone(count: int, error: RuntimeError) -> Gone:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Gone(
        f"another of the {count} processes of this run has ended or can't be reached ({why[:200]}); go on with --resume"
    )


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type, in their order, about `_BUCKET` elements at a time."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or size + gradient.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _text(error: Exception) -> str:
    if isinstance(error, InstructRecError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(": ")


def _exit_code(error: Exception) -> int:
    if isinstance(error, InstructRecError):
        return error.exit_code
    machine = isinstance(error, OSError | MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return EnvironmentFault.exit_code if machine else InstructRecError.exit_code
