"""The contract of every network: encode each modality alone, then decode any subset of them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES, TOLD, Subset, on_host, tell
from bts_lightning.networks.convolutions import OneDNN

# The subset of every row, while a graph is recorded for it; see `Backbone.recording`.
recorded: list[Subset] = []


@dataclass(frozen=True)
class Features:
    """What `encode` yields: per level, finest first, the features of each modality on their own.

    Attributes:
        levels: per level a tensor B×4×C×D×H×W.
        present: per level a bool tensor B×4: which slots `decode` may read.
        real: B×4 bool: which slots hold features of an image that was really encoded. In training
            this may be more than `present`: some published losses supervise dropped modalities.
        original: the features before an alignment substituted absent slots; per-modality heads
            read these.
        heads: whether training also wants the predictions of single modalities.
        place: B×3×2, where each patch lies in the grid of its files: along each axis the voxel
            there that is its first one, and 1, or -1 where it is mirrored.
    """

    levels: tuple[Tensor, ...]
    present: tuple[Tensor, ...]
    real: Tensor
    original: "Features | None" = None
    heads: bool = True
    place: Tensor | None = None

    def restrict(self, present: Tensor) -> "Features":
        """Let `decode` see only these modalities (B×4 bool) of those that were encoded."""
        return replace(self, present=tuple(_both(level, present) for level in self.present))

    def selected(self, level: int) -> Tensor:
        """Give one level with absent slots set to zero by selection, so that NaN cannot pass."""
        x = self.levels[level]  # B M C D H W
        return torch.where(over(self.present[level], x), x, x.new_zeros(()))

    def repeat(self, times: int) -> "Features":
        """Repeat the batch for `times` subsets, without a copy while the batch is one case."""

        def tile(x: Tensor) -> Tensor:
            return x.unsqueeze(0).expand(times, *x.shape).flatten(0, 1)

        return Features(
            levels=tuple(tile(x) for x in self.levels),
            present=tuple(tile(x) for x in self.present),
            real=tile(self.real),
            place=None if self.place is None else tile(self.place),
            original=self.original.repeat(times) if self.original is not None else None,
            heads=self.heads,
        )


def _both(level: Tensor, present: Tensor) -> Tensor:
    if level is present:
        return level
    both = level & present
    if not torch.compiler.is_compiling() and hasattr(level, TOLD) and hasattr(present, TOLD):
        tell(both, on_host(level) & on_host(present))
    return both


@dataclass(frozen=True)
class Auxiliary:
    """An extra supervised prediction of the training step.

    Attributes:
        name: the loss is logged as `train/<name>`. That of a single modality is `modality/t1`, that
            of a subset `subset/t1+t2`; all others are coarser levels, finest first.
        logits: B×C×d×h×w; when coarser than the label, the label is down-sampled to it (nearest).
        weight: factor of its loss.
        valid: B bool, the samples it is supervised on; None means all.
        coarse: the logits whose maps were enlarged to make `logits`; None where none were.
    """

    name: str
    logits: Tensor
    weight: float = 1.0
    valid: Tensor | None = None
    coarse: Tensor | None = None


@dataclass(frozen=True)
class Output:
    """What `decode` yields; in eval mode only `logits` and `embedding` are computed.

    Attributes:
        logits: B×C×D×H×W, the final prediction.
        embedding: B×E×D×H×W, what the last layer made the logits of; distillation compares it.
        fused: B×C×d×h×w, in training, the coarsest map that all present modalities share; DC-Seg
            paints images from it. None where there is none such.
        weight: factor of the final prediction's loss.
        auxiliary: extra supervised predictions.
        penalties: named extra losses, already weighted, added as they are and logged by name.
        watched: named values that are logged and teach nothing. `elbo/kl` is joined by the other
            part of the bound.
        features: what was decoded; `forward` fills this in.
    """

    logits: Tensor
    weight: float = 1.0
    auxiliary: tuple[Auxiliary, ...] = ()
    penalties: dict[str, Tensor] = field(default_factory=dict)
    watched: dict[str, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
    fused: Tensor | None = None
    features: Features | None = None


@dataclass(eq=False)
class Weigher:
    """Pass weights of modalities on; a network asks for `listener` first, so that silence is free.

    Weights are B×M×d×h×w, as coarse as they are, B×M where all voxels share them, or
    B×M×E×d×h×w where each of E experts has its own. What they say of absent modalities is ignored.

    Attributes:
        kind: what they are, in a word: `attention`, `gates`.
        level: which of `Features.levels` they weigh.
        modality: the only one that is weighed, alone in its encoder; M is 1 then.
        listener: takes them in the order of the batch; `decode` may tell one row after the other.
    """

    kind: str
    level: int
    modality: int | None = None
    listener: Callable[[Tensor], None] | None = None


class Backbone(nn.Module, ABC):
    """Base of every network: subclasses write `encode_levels` and `decode`, never `forward`.

    Attributes:
        divisor: every spatial size must be a multiple of this.
        learns_from_dropped: in training also encode modalities that dropout removed, because a
            loss of this network reads them. The prediction never does.
        fused_levels: indices of `Features.levels`, finest first, where `decode` fuses the features
            of single modalities; an alignment may fill these. Empty for early fusion.
        least_width: the smallest `width`, where a part of the network takes a share of it.
        skip_absent: in evaluation a modality that nobody in the batch has costs nothing; the table
            of costs then counts one modality alone.
        patch: the edge of the only cubes that the network takes, where `bind` says so.
        leaks: images of absent modalities change the prediction, as in some released code; such a
            network is evaluated only where the protocol says so.
        frame: the grid of files that the network has a picture of, whose patches must be told their
            `place`; without one they are taken for its first corner.
        misplaces: in evaluation it is told the place in the stored image, as in some released code.
    """

    divisor: int = 1
    least_width: int = 1
    learns_from_dropped: bool = False
    fused_levels: tuple[int, ...] = ()
    skip_absent: bool = False
    patch: int | None = None
    leaks: bool = False
    frame: tuple[int, int, int] | None = None
    misplaces: bool = False

    def __init__(self, out_channels: int, **sizes: int) -> None:
        """Keep the number of channels of the prediction; refuse sizes that are none."""
        super().__init__()
        for name, size in {"out_channels": out_channels, **sizes}.items():
            least = self.least_width if name == "width" else 1
            if size < least:
                raise ConfigError(f"{name} is {size}; {type(self).__name__} needs {least} or more")
        self.out_channels = out_channels

    def forward(
        self,
        image: Tensor,
        present: Tensor,
        available: Tensor | None = None,
        place: Tensor | None = None,
    ) -> Output:
        """Predict from the modalities in `present`; training may also look at `available` ones."""
        here = self.training and image.device.type == "cpu" and not torch.compiler.is_compiling()
        with OneDNN() if here else nullcontext():
            return self._forward(image, present, available, place)

    def _forward(
        self, image: Tensor, present: Tensor, available: Tensor | None, place: Tensor | None
    ) -> Output:
        use_dropped = self.learns_from_dropped and self.training and available is not None
        features = self.encode(
            image, available if use_dropped and available is not None else present, place
        )
        features = features.restrict(present)
        return replace(self.decode(features), features=features)

    def encode(self, image: Tensor, present: Tensor, place: Tensor | None = None) -> Features:
        """Compute everything that does not depend on which other modalities are there."""
        self.check(image, present)
        # Select before any arithmetic: NaN times a zero gradient is NaN in the backward pass.
        image = torch.where(over(present, image), image, image.new_zeros(()))
        levels = self.encode_levels(image, present)
        return Features(levels, (present,) * len(levels), real=present, place=place)

    @abstractmethod
    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        """Encode B×4×D×H×W, absent channels already zero, into levels B×4×C×d×h×w, finest first."""

    @abstractmethod
    def decode(self, features: Features) -> Output:
        """Fuse the present slots of each level and predict; read levels only through `selected`."""

    def decode_subsets(self, features: Features, subsets: Tensor) -> Tensor:
        """Predict in evaluation from many subsets, S×4 bool, of the same windows: S×B×C×D×H×W.

        By default as one large batch. Override it where subsets can share work of the decoder.
        """
        windows = len(features.real)
        many = features.repeat(len(subsets)).restrict(subsets.repeat_interleave(windows, dim=0))
        return torch.unflatten(self.decode(many).logits, 0, (len(subsets), windows))

    @property
    def divisors(self) -> tuple[int, int, int]:
        """Give what each axis must be a multiple of; override it where axes differ."""
        return (self.divisor,) * 3

    @property
    def shares_decoding(self) -> bool:
        """Many subsets decoded together are less work than one after the other."""
        return type(self).decode_subsets is not Backbone.decode_subsets

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch to evaluation and back, each module to what it was."""
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def recording(self, subset: Subset) -> Iterator[None]:
        """Keep the encoders of absent modalities out of a graph for a subset: nobody reads them."""
        recorded.append(subset)
        try:
            with self.evaluating():
                yield
        finally:
            recorded.pop()

    def translations(self) -> dict[Any, Any]:
        """Gather what modules inside say of operators of their own, for `torch.onnx.export`."""
        inside = [module for module in self.modules() if module is not self]
        return {k: v for m in inside for k, v in getattr(m, "translations", dict)().items()}

    def comparable(self, features: Features) -> dict[int, Tensor]:
        """Give the levels B×4×C×d×h×w where each slot is one modality's own, by their index."""
        return {level: features.levels[level] for level in self.fused_levels}

    def anchors(self, features: Features) -> dict[int, Tensor]:
        """Give what the present modalities of a level are pulled to, B×C×d×h×w; by default none."""
        return {}

    def weighers(self) -> tuple[Weigher, ...]:
        """Name the places where modalities are weighed, for who asks; by default there are none.

        A network that shares work between subsets tells each of these as often as without sharing.
        """
        return ()

    @property
    def is_heard(self) -> bool:
        """Say whether somebody listens to the weights now."""
        return any(weigher.listener for weigher in self.weighers())

    def check(self, image: Tensor, present: Tensor) -> None:
        """Refuse what no network can use, in words that say what would do."""
        if image.dim() != 5 or image.shape[1] != len(MODALITIES):
            raise ValueError(
                f"image has shape {tuple(image.shape)}; expected B×{len(MODALITIES)}×D×H×W"
            )
        if present.shape != image.shape[:2] or present.dtype != torch.bool:
            raise ValueError(
                f"present is {present.dtype} of shape {tuple(present.shape)}; "
                f"expected bool {tuple(image.shape[:2])}"
            )
        # The value of `present` is data: reading it would stall a GPU and break a compiled graph.
        if (
            not torch.compiler.is_compiling()
            and present.device.type == "cpu"
            and not present.any(dim=1).all()
        ):
            rows = (~present.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(
                f"no modality is present in row {rows} of the batch; each sample needs at least one"
            )
        self.check_size(tuple(image.shape[2:]))

    def check_frame(self, grid: Sequence[int]) -> None:
        """Refuse a case that is larger than the frame, and say what would do."""
        if self.frame and any(n > most for n, most in zip(grid, self.frame, strict=True)):
            raise ConfigError(
                f"net.frame is {list(self.frame)}, and a case reaches to voxel {list(grid)} of its "
                "grid; give net.frame the size of the largest"
            )

    def bind(self, patch: int) -> None:
        """Take cubes of this edge alone, because a table has an entry for each place in them."""
        self.check_patch(patch)
        self.patch = patch

    def check_patch(self, patch: int) -> None:
        """Refuse an edge that is no multiple, or leaves one voxel after the last halving."""
        if patch % self.divisor or patch < 2 * self.divisor:
            raise ConfigError(
                f"patch is {patch}; {type(self).__name__} needs a multiple of {self.divisor}, "
                f"{2 * self.divisor} or more"
            )

    def check_size(self, size: tuple[int, ...]) -> None:
        """Refuse a size that the network cannot halve often enough, and name one that works."""
        if self.patch is not None and size != (self.patch,) * 3:
            raise ValueError(
                f"{type(self).__name__} was built for {(self.patch,) * 3} voxels, got {size}; use "
                f"windows of {self.patch} or build it with another `patch`"
            )
        if any(length % step for length, step in zip(size, self.divisors, strict=True)):
            fits = tuple(
                max(step, -(-length // step) * step)
                for length, step in zip(size, self.divisors, strict=True)
            )
            steps = self.divisor if len(set(self.divisors)) == 1 else self.divisors
            raise ValueError(
                f"{type(self).__name__} needs sizes that are multiples of {steps}, "
                f"got {size}; {fits} would do"
            )


@torch.no_grad()
def weightless(backbone: Backbone) -> tuple[Backbone, Tensor, Tensor]:
    """Give a copy that holds no numbers, and an image and flags for it, to learn shapes from."""
    weights = {id(p): nn.Parameter(p.detach().to("meta")) for p in backbone.parameters()}
    net = copy.deepcopy(backbone, weights).to("meta")
    size = (net.patch,) * 3 if net.patch else tuple(2 * d for d in net.divisors)
    image = torch.zeros(1, len(MODALITIES), *size, device="meta")
    return net, image, torch.ones_like(image[:, :, 0, 0, 0], dtype=torch.bool)


def over(flags: Tensor, x: Tensor) -> Tensor:
    """Shape flags or counts, B or B×M, so that they broadcast over the features `x`."""
    return flags.view(*flags.shape, *[1] * (x.dim() - flags.dim()))
