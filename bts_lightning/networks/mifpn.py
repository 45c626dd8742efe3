"""MIFPN: prompts from a shared encoder steer the fusion of four separate ones."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bts_lightning.errors import ConfigError
from bts_lightning.modalities import MODALITIES
from bts_lightning.networks.attention import (
    SelfAttention,
    perceptron_branch,
    to_tokens,
    to_volume,
)
from bts_lightning.networks.backbone import Auxiliary, Backbone, Features, Output, over
from bts_lightning.networks.presence import encode_each, full_precision, without_autocast
from bts_lightning.networks.pyramid import (
    Encoder,
    ModalityDecoder,
    Unit,
    bottleneck,
    enlarged_head,
    enlarging,
    initialise,
    joining,
    to_maps,
)

# Levels of `Features`: four fine ones, the deepest of the own encoders, that of the shared one.
DEEP, SHARED = 4, 5


class MIFPN(Backbone):
    """Fuse modalities under prompts: what a shared encoder and a transformer make of each image.

    Diao et al.: Multimodal Invariant Feature Prompt Network for Brain Tumor Segmentation with
    Missing Modalities, Neurocomputing 2025 (10.1016/j.neucom.2024.128847). Official code:
    github.com/diaoyq121/MIFPN at 24f0429 (no licence; nothing was copied).

    Deviations:
        `leak="none"`: a feed-forward layer averages over the tokens of the modalities that are
        present. The released code averages over all and never masks the images, so that half of
        this mean carries the absent modalities into the prediction: `released` repeats that.
        Left out are 12,331,268 parameters (at 80³) that the official code holds without effect:
        two stages of M2FTrans that are never called, the selection and units of level 5 whose
        result is overwritten, and the "modality-aware mask", a softmax over one channel, which
        multiplies by 1.
        Each sample has its own `present`; officially the first row of a batch decides for all.

    The leak, shown: another T1 image changes what the released network predicts from T1c and FLAIR.
    With the weights of the golden files it is 7 to 16 % of the logits, whether the absent images
    are zero or others. The published lead of MIFPN is largest where T1c is said to be missing, and
    was measured so; do not compare with it.

        >>> present = torch.tensor([[False, True, False, True]])
        >>> image = torch.randn(1, 4, 32, 32, 32)
        >>> other = image.where(present.view(1, 4, 1, 1, 1), -image)
        >>> for leak in ("none", "released"):
        ...     net = MIFPN(**MIFPN.small(), leak=leak).eval()
        ...     print(leak, torch.equal(net(image, present).logits, net(other, present).logits))
        none True
        released False

    Args:
        width: channels of the finest level; a token has 16 times as many.
        patch: edge of the cube of voxels that the position table and the selection are made for;
            the network takes no other.
        heads: of the transformers.
        hidden: hidden channels of the transformers' perceptrons.
        depth: layers of each of the two transformers.
        leak: see above.

    Example:
        >>> net = MIFPN(**MIFPN.small()).eval()
        >>> present = torch.tensor([[True, False, True, True]])
        >>> net(torch.randn(1, 4, 32, 32, 32), present).logits.shape
        torch.Size([1, 4, 32, 32, 32])
    """

    divisor = 16
    learns_from_dropped = True  # heads of single modalities and prompts see all that the case has
    fused_levels = (0, 1, 2, 3, DEEP, SHARED)

    def __init__(
        self,
        *,
        width: int = 16,
        patch: int = 80,
        heads: int = 8,
        hidden: int = 4096,
        depth: int = 3,
        dropout: float = 0.1,
        leak: Literal["none", "released"] = "none",
        out_channels: int = 4,
    ) -> None:
        super().__init__(out_channels, width=width, heads=heads, hidden=hidden, depth=depth)
        self.bind(patch)
        widths = [width * 2**level for level in range(5)]
        deepest, fine = widths[-1], widths[:-1]
        if deepest % heads:
            raise ConfigError(f"16 · width = {deepest} is not a multiple of heads {heads}")
        self.leaks = leak == "released"
        tokens = (patch // self.divisor) ** 3

        def transformer() -> PromptTransformer:
            layers = [MixingLayer(deepest, heads, hidden, dropout) for _ in range(depth)]
            return PromptTransformer(layers)

        self.encoders = nn.ModuleList(Encoder(widths) for _ in MODALITIES)
        self.shared_encoder = Encoder(widths)
        self.positions = nn.Parameter(torch.zeros(1, (len(MODALITIES) + 1) * tokens, deepest))
        self.fusion = nn.Parameter(torch.randn(1, tokens, deepest))
        self.prompting = transformer()
        self.prompt_units = nn.ModuleList(Unit(deepest, deepest) for _ in MODALITIES)
        self.crossings = nn.ModuleList(CrossFusion(deepest) for _ in MODALITIES)
        self.fusing = transformer()
        self.selections = nn.ModuleList(
            ChannelSelection(w, (patch // 2**level) ** 3) for level, w in enumerate(fine)
        )
        self.enlarge = nn.ModuleList(enlarging(2 * w, w) for w in fine)
        self.join = nn.ModuleList(joining(w) for w in fine)
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)
        # 16 is fixed in the official code, whatever the width.
        self.coarse_heads = nn.ModuleList(
            nn.Sequential(Unit(w, 16, kernel=1), nn.Conv3d(16, out_channels, 1)) for w in widths
        )
        self.modality_decoder = ModalityDecoder(widths, out_channels)
        initialise(self, nn.Conv3d)

    @classmethod
    def small(cls) -> dict[str, Any]:
        """Give arguments of the same wiring that run in a blink."""
        return {"width": 4, "patch": 32, "heads": 2, "hidden": 32, "depth": 2}

    def encode(self, image: Tensor, present: Tensor, place: Tensor | None = None) -> Features:
        """Encode as every network, or with `leak="released"` also what is absent."""
        if not self.leaks:
            return super().encode(image, present, place)
        self.check(image, present)
        levels = self.encode_levels(image, present)
        return Features(levels=levels, present=(present,) * len(levels), real=present)

    def encode_levels(self, image: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        shared = self.shared_encoder(image.flatten(0, 1).unsqueeze(1))[-1]  # (B M) C d h w
        return *encode_each(self.encoders, image), torch.unflatten(shared, 0, image.shape[:2])

    def decode(self, features: Features) -> Output:
        prompts, prompt = self.prompt(features)
        deep = self.cross(features, prompts)
        states = self.fuse(features, deep, prompt)
        logits = self.head(states[0])
        if not self.training:
            return Output(logits, embedding=states[0])
        coarse = tuple(
            enlarged_head(f"deep/{level}", to_maps(head(before)), 2**level)
            for level, (head, before) in enumerate(zip(self.coarse_heads, states[1:], strict=True))
        )
        modalities = self.segment_each(features, deep)
        real = (features.original or features).real
        penalty = {"prompt": prompt_divergence(prompts, prompt, real)}
        return Output(logits, auxiliary=modalities + coarse, penalties=penalty, embedding=states[0])

    def prompt(self, features: Features) -> tuple[Tensor, Tensor]:
        """Make a prompt of each modality, B×M×C×d×h×w, and one of all, B×C×d×h×w."""
        shared = self.readable(features, SHARED)
        fusion = self.fusion.expand(shared.shape[0], -1, -1)
        tokens, fused = self.attend(self.prompting, shared, fusion, features.present[SHARED])
        return to_volumes(tokens, shared), to_volume(fused, shared.shape[3:])

    def cross(self, features: Features, prompts: Tensor) -> Tensor:
        """Let each modality's deepest features and its prompt look at each other."""
        deep = self.readable(features, DEEP)
        mixed = [
            crossing(deep[:, m], unit(prompts[:, m]))
            for m, (unit, crossing) in enumerate(
                zip(self.prompt_units, self.crossings, strict=True)
            )
        ]
        return torch.stack(mixed, dim=1)

    def fuse(self, features: Features, deep: Tensor, prompt: Tensor) -> list[Tensor]:
        """Fuse from the deepest level up: the finest state, then what the head of each level reads.

        The deepest head reads the tokens of the second transformer themselves.
        """
        present = features.present[DEEP]
        _, fused = self.attend(self.fusing, deep, to_tokens(prompt), present)
        x = to_volume(fused, deep.shape[3:])
        states = [x]
        for level in reversed(range(DEEP)):
            x = self.enlarge[level](x)
            states.insert(0, x)
            selected = self.selections[level](features.selected(level))
            x = self.join[level](torch.cat([selected, x], dim=1))
        return [x, *states]

    def attend(
        self, transformer: nn.Module, modalities: Tensor, fusion: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Give volumes of modalities and fusion tokens to a transformer; positions are added."""
        each = modalities.flatten(3).transpose(2, 3)  # B M N C
        blocks = torch.cat([each, fusion.unsqueeze(1)], dim=1)
        tokens = blocks + torch.unflatten(self.positions, 1, blocks.shape[1:3])
        counted = torch.ones_like(present) if self.leaks else present
        attended = transformer(tokens, present, counted)
        return attended[:, :-1], attended[:, -1]

    def readable(self, features: Features, level: int) -> Tensor:
        """Give a level with zeros where nothing may be read.

        In training dropped modalities are read too, for their own heads and prompts: no token of
        another modality attends to theirs.
        """
        if self.leaks:
            return features.levels[level]
        keep = features.present[level]
        if self.training:
            keep = keep | features.real
        x = features.levels[level]
        return torch.where(over(keep, x), x, x.new_zeros(()))

    def segment_each(self, features: Features, deep: Tensor) -> tuple[Auxiliary, ...]:
        """Segment every modality on its own, also those that dropout removed."""
        if not features.heads:
            return ()
        own = features.original or features
        # An alignment replaced the deepest features of the dropped ones.
        valid = own.real if features.original is None else own.present[DEEP]
        pyramid = [torch.where(over(own.real, x), x, x.new_zeros(())) for x in own.levels[:DEEP]]
        logits = self.modality_decoder([x.flatten(0, 1) for x in [*pyramid, deep]])
        logits = torch.unflatten(logits, 0, valid.shape)
        return tuple(
            Auxiliary(name=f"modality/{name}", logits=logits[:, m], valid=valid[:, m])
            for m, name in enumerate(MODALITIES)
        )


class MixingLayer(nn.Module):
    """Attend, then transform each token; half of what is added there is the mean of all tokens."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attend = SelfAttention(width, heads=heads, dropout=dropout)
        self.drop = nn.Dropout(dropout)  # a second one after the attention's own, as published
        self.transform = perceptron_branch(width, hidden=hidden, dropout=dropout)

    def forward(self, tokens: Tensor, sees: Tensor, counted: Tensor) -> Tensor:
        """Take tokens B×N×C, who sees whom B×1×N×N and whom the mean counts B×N."""
        tokens = tokens + self.drop(self.attend(self.norm(tokens), sees))
        made = self.transform(tokens)
        shared = torch.where(counted.unsqueeze(2), made, 0).sum(dim=1, keepdim=True)
        mean = shared / counted.sum(dim=1).view(-1, 1, 1)
        mixed: Tensor = tokens + 0.5 * (made + mean)
        return mixed


class PromptTransformer(nn.Module):
    """Let each modality attend to itself, and fusion tokens to themselves and what is present."""

    def __init__(self, layers: list[MixingLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, present: Tensor, counted: Tensor) -> Tensor:
        """Take tokens B×(M+1)×N×C, the fusion's last, and which modalities the means count."""
        blocks, each = tokens.shape[1:3]
        fusion = torch.ones_like(present[:, :1])
        own = torch.eye(blocks, dtype=torch.bool, device=tokens.device)[:-1]
        last = torch.cat([present, fusion], dim=1).unsqueeze(1)
        sees = torch.cat([own.expand(tokens.shape[0], -1, -1), last], dim=1)  # B M+1 M+1
        sees = sees.repeat_interleave(each, dim=1).repeat_interleave(each, dim=2).unsqueeze(1)
        kept = torch.cat([counted, fusion], dim=1).repeat_interleave(each, dim=1)
        x = tokens.flatten(1, 2)
        for layer in self.layers:
            x = layer(x, sees, kept)
        return x.reshape(tokens.shape)


class CrossFusion(nn.Module):
    """Let features and prompt attend to each other with the same weights, and fuse the two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Conv3d(width, width, 1) for _ in range(4))
        self.fuse = nn.Sequential(nn.Conv3d(2 * width, width, 1), nn.ReLU())

    def forward(self, features: Tensor, prompt: Tensor) -> Tensor:
        both = [self.attend(features, prompt), self.attend(prompt, features)]
        fused: Tensor = self.fuse(torch.cat(both, dim=1))
        return fused

    def attend(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Add to each voxel what it finds in the other; no scale tempers the scores."""
        query, key, value = (
            full_precision(to_tokens(part))  # B N C
            for part in (self.query(asking), self.key(asked), self.value(asked))
        )
        # Scores of some hundred make much of a last digit, and would not fit half precision.
        with without_autocast(query):
            found = (query @ key.mT).softmax(dim=2) @ value
        attended: Tensor = asking + self.out(to_volume(found, asking.shape[2:]))
        return attended


class ChannelSelection(nn.Module):
    """Weigh the channels of each modality by what their whole maps look like, and fuse all."""

    def __init__(self, width: int, voxels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(voxels, 64), nn.ReLU(), nn.Linear(64, 1, bias=False))
        self.fuse = bottleneck(len(MODALITIES) * width, width, width)

    def forward(self, modalities: Tensor) -> Tensor:
        weights = self.score(modalities.flatten(3)).softmax(dim=2)  # B M C 1
        weighted = modalities * weights[..., None, None].to(modalities.dtype)
        fused: Tensor = self.fuse(weighted.flatten(1, 2))
        return fused


def to_volumes(tokens: Tensor, like: Tensor) -> Tensor:
    """Lay the tokens of each modality out as a volume: B×M×N×C to B×M×C×d×h×w."""
    return tokens.transpose(2, 3).reshape(like.shape)


def prompt_divergence(prompts: Tensor, prompt: Tensor, real: Tensor) -> Tensor:
    """Measure how far the common prompt is from those of the modalities, channels as classes."""
    with without_autocast(prompt):
        own = full_precision(prompts).softmax(dim=2) + 1e-6  # B M C d h w
        common = full_precision(prompt).log_softmax(dim=1).unsqueeze(1)
        apart = (own * (own.log() - common)).flatten(2).mean(dim=2)  # B M
        return torch.where(real, apart, 0.0).sum(dim=1).mean()
