"""`RetrievalNet`: any timm backbone, a linear neck with BatchNorm, a linear classifier (METHODS section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunnet.config import ModelConfig
from prunnet.errors import ConfigError, unknown
from prunnet.prunable import attach_scores

_REFUSED = "checkpoint_path pretrained pretrained_cfg pretrained_cfg_overlay cache_dir features_only"
REFUSED_OPTIONS = frozenset(_REFUSED.split())
"""Of timm.create_model: a saved network's header must not make timm open or fetch another file."""


class RetrievalNet(nn.Module):
    """Backbone -> neck (linear, BatchNorm) -> classifier; every weight of the backbone's convolutions and
    linear layers carries a score.

    Args:
        backbone: any timm name.
        classes: training classes, at least 2.
        embedding_dim: length of an embedding.
        in_chans: 1 (grey) or 3 (colour), or what the backbone takes.
        stem: "released" drops the max-pool after the stem, as PrunNet's released ResNet-18 does.
        neck_norm: "batch" or "none".
        options: keyword arguments for `timm.create_model`.
        score_init: see `prunable.init_scores`.
        seed: of weights and scores; the same seed gives the same network.

    Raises:
        ConfigError: unknown backbone or option, a stem that the backbone does not have, fewer than two classes.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        classes: int = 2,
        *,
        embedding_dim: int = 256,
        in_chans: int = 3,
        stem: str = "timm",
        neck_norm: str = "batch",
        options: Mapping[str, Any] | None = None,
        score_init: str = "kaiming_uniform",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes={classes}: a network is trained to tell at least 2 classes apart")
        self.spec: dict[str, Any] = {
            "backbone": backbone,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "in_chans": in_chans,
            "stem": stem,
            "neck_norm": neck_norm,
            "options": dict(options or {}),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = make_backbone(backbone, in_chans=in_chans, stem=stem, options=options)
            width = int(self.backbone.num_features)  # type: ignore[arg-type]
            norm = nn.BatchNorm1d(embedding_dim) if neck_norm == "batch" else nn.Identity()
            self.neck = nn.Sequential(nn.Linear(width, embedding_dim), norm)
            self.classifier = nn.Linear(embedding_dim, classes)
        attach_scores(self.backbone, score_init, seed)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, classes]."""
        return self.classifier(self.neck(self.backbone(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> L2-normalised embeddings [B, embedding_dim], float32."""
        return F.normalize(self.neck(self.backbone(images)).float())

    @classmethod
    def from_config(
        cls, model: ModelConfig, *, classes: int, in_chans: int, score_init: str, seed: int
    ) -> RetrievalNet:
        """The network that a recipe's section describes."""
        return cls(
            model.backbone,
            classes,
            embedding_dim=model.embedding_dim,
            in_chans=in_chans,
            stem=model.stem,
            neck_norm=model.neck_norm,
            options=model.options,
            score_init=score_init,
            seed=seed,
        )


def make_backbone(
    name: str, *, in_chans: int = 3, stem: str = "timm", options: Mapping[str, Any] | None = None
) -> nn.Module:
    """A timm model without its classifier: images [B, C, H, W] -> pooled features [B, num_features].

    Raises ConfigError for a name or an option that timm does not know.
    """
    if not timm.is_model(name):
        raise ConfigError(unknown("backbone", name, timm.list_models()))
    if refused := sorted(set(options or {}) & REFUSED_OPTIONS):
        raise ConfigError(f"backbone options {refused} are not taken: they would load weights or undo the recipe")
    try:
        model = timm.create_model(name, num_classes=0, in_chans=in_chans, **dict(options or {}))
    except (TypeError, KeyError) as error:
        raise ConfigError(f"backbone {name!r} does not take options {dict(options or {})!r}: {error}") from None
    if stem == "released":
        if not hasattr(model, "maxpool"):
            raise ConfigError(f"stem 'released' drops a max-pool, which backbone {name!r} does not have; valid: timm")
        model.maxpool = nn.Identity()
    elif stem != "timm":
        raise ConfigError(unknown("stem", stem, ("timm", "released")))
    return model
