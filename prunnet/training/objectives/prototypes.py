"""Compatibility by class prototypes of the old network (arXiv 2503.14824; METHODS section 5): the unperturbed control,
and what `ndpp` and `odpp` share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.errors import DataError
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.base import Context, Term


class Prototypes(Term):
    """Softmax over cosines between an embedding and the old class prototypes, at `train.temperature`.

    A prototype is the normalised mean of the normalised embeddings of a class' training images; those of the old
    network are taken once, on the *new* training images, so that new classes have prototypes too.
    """

    moves = False
    """Whether the prototypes are perturbed, anew at the start of every epoch."""

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context) -> None:
        assert context.old is not None
        assert context.train_set is not None
        self.net, self.config, self.context = net, config, context
        self.old_prototypes = class_prototypes(context.old.embed, context)
        """p [classes, d]."""
        self.perturbed = self.old_prototypes
        """p~ [classes, d]."""

    def start_epoch(self, epoch: int) -> None:
        if self.moves:
            self.perturbed = self.perturb(self.old_prototypes, self.new_prototypes(), epoch)

    def perturb(self, old: Tensor, new: Tensor, epoch: int) -> Tensor:
        """p [classes, d], q [classes, d] -> p~ [classes, d], normalised."""
        raise NotImplementedError

    @torch.no_grad()
    def new_prototypes(self) -> Tensor:
        """q [classes, d]: the dense new network's, as it stands."""
        training = self.net.training
        self.net.eval()
        try:
            return class_prototypes(self._embed_new, self.context)
        finally:
            self.net.train(training)

    def _embed_new(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self.net.embed(images.to(next(self.net.parameters()).dtype))

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        everyone = self.perturbed if self.config.perturb == "all" else self.old_prototypes
        return prototype_loss(features, labels, everyone, self.perturbed, self.config.temperature)

    def state(self) -> dict[str, Tensor]:
        return {"perturbed": self.perturbed} if self.moves else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if self.moves:
            self.perturbed = state["perturbed"].to(self.old_prototypes)


def prototype_loss(features: Tensor, labels: Tensor, everyone: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of cos / temperature over the classes.

    Args:
        features: [B, d], any length. labels: [B].
        everyone: [classes, d] unit prototypes that stand for the classes an image does not belong to.
        own: [classes, d] unit prototypes that stand for its own.
    """
    unit = F.normalize(features)
    cosines = unit @ everyone.to(unit.dtype).T
    positive = (unit * own[labels].to(unit.dtype)).sum(dim=1, keepdim=True)
    return F.cross_entropy(cosines.scatter(1, labels[:, None], positive) / temperature, labels)


@torch.no_grad()
def class_prototypes(embed, context: Context, batch_size: int = 256) -> Tensor:  # type: ignore[no-untyped-def]
    """[classes, d] normalised means of `embed(images, dtype)` over the training images under the evaluation transform.

    Each worker embeds its share, which may hold no image of a class, or none at all; sums are added up over the workers
    in float64. float32. Raises DataError for a label below the largest that no training image has.
    """
    images, preprocessing, reducer, old = context.train_set, context.preprocessing, context.reducer, context.old
    assert images is not None
    assert preprocessing is not None
    assert old is not None
    device, dim = old.device, old.cut.embedding_dim  # the new network's, too
    counts = np.bincount(images.labels)
    if not counts.all():
        raise DataError(
            f"class {int(counts.argmin())} of {len(counts)} has no training image, so it has no prototype; valid: "
            "labels 0, 1, 2, … without a gap"
        )
    total = torch.zeros(len(counts), dim, dtype=torch.float64, device=device)
    own = torch.arange(len(images))[reducer.rank :: reducer.world]
    for part in own.split(batch_size):
        pixels = torch.from_numpy(images.read(part.numpy())).to(device)
        labels = torch.from_numpy(images.labels[part.numpy()]).to(device)
        embeddings = F.normalize(embed(preprocessing.normalise(pixels), context.dtype).double())
        total.index_add_(0, labels, embeddings)
    (mean,) = reducer.average([total])
    return F.normalize(mean).float()
