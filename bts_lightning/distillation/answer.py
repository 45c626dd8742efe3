"""What a network makes of a batch, as far as distillation compares it."""

from dataclasses import dataclass

from torch import Tensor

from bts_lightning.errors import ConfigError
from bts_lightning.networks.backbone import Backbone, Features, Output


@dataclass(frozen=True)
class Answer:
    """A network and its output, whose parts must be there to be compared."""

    net: Backbone
    output: Output

    @property
    def logits(self) -> Tensor:
        """B×C×D×H×W."""
        return self.output.logits

    @property
    def features(self) -> Features:
        """What the network decoded, each level with its own `present`."""
        assert self.output.features is not None  # `forward` fills them in
        return self.output.features

    @property
    def embedding(self) -> Tensor:
        """What the head read, B×E×D×H×W."""
        if self.output.embedding is None:
            raise ConfigError(
                f"{type(self.net).__name__} gives no Output.embedding, the features that its head "
                "reads, so these cannot be compared; let its `decode` give them, or switch off the "
                "terms that read them"
            )
        return self.output.embedding
