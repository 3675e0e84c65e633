"""What happened in one step of training, read from the device when it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snrkit.base.transfer import Reading
from snrkit.training.clipping import Clipped, clipped

Culprits = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """Images of a micro-batch, their levels, and their losses, which lie on the device; each (n,)."""

    images: Tensor  # indices into the data set
    logsnr: Tensor
    losses: Tensor

    def culprits(self) -> list[tuple[int, float]]:
        """(index, logsnr) of the images whose loss is not finite."""
        bad = (~self.losses.isfinite()).nonzero().flatten().tolist()
        return [(int(self.images[i]), float(self.logsnr[i])) for i in bad]


class TrainStep:
    """What happened in one optimizer step, on this process.

    What the device computes is read when it is first asked for, which waits until the device has come so far: ask for
    the numbers of a step when the next one has begun, and the device never waits. By then, or when TrainState.settle is
    called, the step is settled: all processes know what each saw of one that was skipped.
    """

    def __init__(
        self,
        step: int,
        images: int,
        lr: float,
        seen: Sequence[Seen],
        names: Sequence[str],
        reading: Reading,
    ) -> None:
        """`reading`: the loss, whether the step was taken, how many processes were asked to stop, and what
        clip_on_device gives of parameters `names`.
        """
        self.step = step
        self.images = images  # seen after this step
        self.lr = lr
        self.logit: float | None = None  # largest attention logit, where it was watched
        self.seen = seen  # by this process
        self._names, self._reading = names, reading
        self._logsnr = torch.cat([each.logsnr for each in seen])
        self._culprits: Culprits | None = None

    def tell(self, logsnr: Tensor, culprits: Culprits) -> None:
        """What all processes saw of a step that was skipped: TrainState.settle calls it in each of them."""
        self._logsnr, self._culprits = logsnr, culprits

    @property
    def loss(self) -> float:
        """Of the global batch."""
        return self._reading.get()[0]

    @property
    def skipped(self) -> bool:
        """Whether the loss or the gradient was not finite, and the weights stayed."""
        return self._reading.get()[1] == 0

    @property
    def asked(self) -> bool:
        """Whether any process had been asked to stop before this step: the same in all of them."""
        return self._reading.get()[2] > 0

    @property
    def _clipped(self) -> Clipped:
        return clipped(self._names, self._reading.get()[3:])

    @property
    def grad_norm(self) -> float:
        """Before clipping."""
        return self._clipped.before

    @property
    def clipped_norm(self) -> float:
        """After clipping."""
        return self._clipped.after

    @property
    def clipped(self) -> bool:
        """Whether anything was cut."""
        return self._clipped.cut

    @property
    def cosine(self) -> float | None:
        """Between the gradient and what clipping left of it, where it was watched."""
        return self._clipped.cosine

    @property
    def largest(self) -> tuple[str, float] | None:
        """The tensor with the largest share of the squared norm, and the share, where it was watched."""
        return self._clipped.largest

    @property
    def logsnr(self) -> Tensor:
        """Levels of this process's images; of all processes' of a skipped step that is settled."""
        return self._logsnr

    @property
    def culprits(self) -> Culprits:
        """(index in the data set, logsnr) of the images whose loss is not finite: see `logsnr` for whose."""
        if self._culprits is not None:
            return self._culprits
        return tuple(each for seen in self.seen for each in seen.culprits())
