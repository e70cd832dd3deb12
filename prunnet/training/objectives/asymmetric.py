"""AML: asymmetric metric learning (Budnik and Avrithis, CVPR 2021; METHODS section 4)."""

from __future__ import annotations

import torch.nn.functional as F
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

from prunnet.config.recipe import TrainConfig
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.training.objectives.base import Context, Term

MARGIN = 0.3


class Asymmetric(Term):
    """Triplets with the student's embedding as anchor, and the teacher's hardest positive (the farthest of the
    class; the image's own counts) and hardest negative (the nearest of another class) of the whole batch.

    Euclidean distances of normalised embeddings. The teacher's embeddings are gathered over the workers, so the
    hardest are those of the whole batch. The classifier is not trained.
    """

    own_loss = False

    def __init__(self, net: RetrievalNet, config: TrainConfig, context: Context) -> None:
        assert context.old is not None
        self.old, self.dtype, self.reducer = context.old, context.dtype, context.reducer
        self.hardest = BatchHardMiner()
        self.triplet = TripletMarginLoss(margin=MARGIN, reducer=MeanReducer())

    def targets(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        embeddings = self.reducer.gather(self.old.embed(images, self.dtype)).flatten(0, 1)
        return embeddings, self.reducer.gather(labels).flatten()

    def loss(self, features: Tensor, labels: Tensor, targets: tuple[Tensor, ...]) -> Tensor:
        # The library takes "the same tensor" as "the same images", and would leave each image's own embedding out.
        teacher, teacher_labels = targets[0].to(features.dtype), targets[1].clone()
        anchors = F.normalize(features)
        triplets = self.hardest(anchors.detach(), labels, teacher, teacher_labels)
        return self.triplet(anchors, labels, triplets, teacher, teacher_labels)
