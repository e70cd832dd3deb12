"""`RetrievalNet`: any timm backbone, a linear neck with BatchNorm, a linear classifier (docs/METHODS.md, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunnet.config.granularities import GRANULARITIES
from prunnet.config.recipe import CONVERTED, ModelConfig, check_weights_name
from prunnet.errors import ConfigError, echo, one_line, unknown
from prunnet.networks.pooling import make_pooling
from prunnet.networks.pretrained import whole_weights
from prunnet.networks.timm_library import timm
from prunnet.pruning.channel_graph import ChannelGraph, trace
from prunnet.pruning.channel_scores import Channels
from prunnet.pruning.granularities.by_name import selection_of
from prunnet.pruning.macs import layer_macs
from prunnet.pruning.network import PrunableNet
from prunnet.pruning.prunable import attach_scores, init_scores
from prunnet.pruning.width_slices import channels, shrink
from prunnet.storage.hashing import without_defaults
from prunnet.storage.paths import local, place

_REFUSED = "checkpoint_path pretrained pretrained_cfg pretrained_cfg_overlay cache_dir features_only"
REFUSED_OPTIONS = frozenset(_REFUSED.split())
"""Of timm.create_model: a saved network's header must not make timm open or fetch another file."""


class RetrievalNet(PrunableNet):
    """Backbone -> pooling -> neck (linear, BatchNorm) -> classifier; every weight of the backbone's convolutions and
    linear layers carries a score.

    Args:
        backbone: any timm name.
        classes: training classes, at least 2.
        embedding_dim: length of an embedding.
        in_chans: 1 (grey) or 3 (colour), or what the backbone takes.
        stem: "released" drops the max-pool after the stem, as PrunNet's released ResNet-18 does.
        neck_norm: "batch" or "none".
        pooling: "timm", "avg", "max" or "gem"; see `prunnet.networks.pooling`.
        gem_p: of "gem", at the start; not part of the network's description.
        options: keyword arguments for `timm.create_model`.
        features: length of the backbone's output for an image, where timm's own figure differs.
        width: the first so many of every layer's channels, 0 < width <= 1; see `prunnet.networks.switchable`.
        scored: False leaves the scores out: a plain network that nothing can be cut from.
        granularity: what a score stands for, by name; see `prunnet.config.granularities`.
        channel_multiple: `channel` keeps a multiple of so many channels in each layer.
        image_size: `channel` measures capacity in multiply-adds, for images of so many pixels a side.
        score_init: see `prunable.init_scores`.
        seed: of weights and scores; the same seed gives the same network.
        pretrained, weights: see `make_backbone`; not part of the network's description.

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
        pooling: str = "timm",
        gem_p: float = 3.0,
        options: Mapping[str, Any] | None = None,
        features: int | None = None,
        width: float = 1.0,
        scored: bool = True,
        granularity: str = "weight",
        channel_multiple: int = 8,
        image_size: int = 224,
        score_init: str = "kaiming_uniform",
        seed: int = 0,
        pretrained: bool = False,
        weights: str | None = None,
    ) -> None:
        super().__init__()

        by_channel = GRANULARITIES[granularity].channels
        if classes < 2:
            raise ConfigError(f"classes={classes}: a network is trained to tell at least 2 classes apart")
        described = {
            "backbone": backbone,
            "classes": classes,
            "embedding_dim": embedding_dim,
            "in_chans": in_chans,
            "stem": stem,
            "neck_norm": neck_norm,
            "pooling": pooling,
            "options": dict(options or {}),
            "features": features,
            "width": width,
            "scored": scored,
            "granularity": granularity,
            **({"channel_multiple": channel_multiple, "image_size": image_size} if by_channel else {}),
        }
        later = {"pooling": "timm", "features": None, "width": 1.0, "scored": True, "granularity": "weight"}
        self.spec: dict[str, Any] = without_defaults(described, later)
        self.held: tuple[str, ...] = ()
        """BatchNorms that stay in evaluation mode while the network trains (`train.freeze`)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = make_backbone(
                backbone,
                in_chans=in_chans,
                stem=stem,
                pooling=pooling,
                options=options,
                pretrained=pretrained,
                weights=weights,
            )
            self.pooling = make_pooling(pooling, gem_p)
            given = features or _features_of(self.backbone)
            if width != 1.0:
                shrink(self.backbone, width)
                given = channels(given, width)
            norm = nn.BatchNorm1d(embedding_dim) if neck_norm == "batch" else nn.Identity()
            self.neck = nn.Sequential(nn.Linear(given, embedding_dim), norm)
            self.classifier = nn.Linear(embedding_dim, classes)
        self.channels: Channels | None = None
        """Scores and groups of granularity `channel`."""
        self._graph: ChannelGraph | None = None
        if scored and by_channel:
            image = torch.zeros(1, in_chans, image_size, image_size)
            self.channels = Channels.of(self, self.traced(image), layer_macs(self, image_size), channel_multiple)
            init_scores(self, score_init, seed)
        elif scored:
            kind = selection_of(granularity)
            attach_scores(self.backbone, score_init, seed, shape=kind.score_shape, prunes=kind.prunes)

    def channel_graph(self, image_size: int) -> ChannelGraph:
        """Which channels are tied to each other (`prunnet.pruning.channel_graph`), traced once."""
        if self.channels is not None:
            return self.channels.graph
        if self._graph is None:
            like = next(self.parameters())
            image = torch.zeros(1, self.spec["in_chans"], image_size, image_size, dtype=like.dtype, device=like.device)
            self._graph = self.traced(image)
        return self._graph

    def traced(self, image: Tensor) -> ChannelGraph:
        """The channel groups, seen on an image [1, C, H, W]; ConfigError for a network that cannot be traced."""
        try:
            return trace(self, self.features, image)
        except (RuntimeError, IndexError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ConfigError(
                f"the channels of backbone {self.spec['backbone']!r} cannot be traced: {one_line(error)[:200]}; valid: "
                "another granularity than channel"
            ) from None

    @property
    def adapted(self) -> str | None:
        """What was changed or left out of `weights` so that they fit, in one line; None: nothing."""
        return getattr(self.backbone, "adapted", None)

    def train(self, mode: bool = True) -> RetrievalNet:
        """As torch's, but what is `held` keeps its statistics."""
        super().train(mode)
        for name in self.held:
            self.get_submodule(name).eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> logits [B, classes]."""
        return self.classifier(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> the neck's output [B, embedding_dim], not normalised."""
        return self.neck(self.pooling(self.backbone(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] -> L2-normalised embeddings [B, embedding_dim], float32."""
        return F.normalize(self.features(images).float())

    @classmethod
    def from_config(
        cls,
        model: ModelConfig,
        *,
        classes: int,
        in_chans: int,
        score_init: str | None,
        seed: int,
        image_size: int,
        **more: Any,
    ) -> RetrievalNet:
        """The network that a recipe's section describes, for square images of `image_size` pixels; `more` as of the
        network itself.

        One image is run: ConfigError for a backbone that does not take it, or gives no vector for it.
        """
        arguments: dict[str, Any] = {
            "embedding_dim": model.embedding_dim,
            "in_chans": in_chans,
            "stem": model.stem,
            "neck_norm": model.neck_norm,
            "pooling": model.pooling,
            "gem_p": model.gem_p,
            "options": sized_options(model, image_size),
            # SNIP needs a batch: the trainer overwrites the scores before its first step.
            "score_init": "kaiming_uniform" if score_init in (None, "snip") else score_init,
            "seed": seed,
            "pretrained": model.pretrained,
            "weights": model.weights,
            "image_size": image_size,
            **more,
        }
        said, seen = _seen_features(
            model.backbone,
            in_chans=in_chans,
            stem=model.stem,
            pooling=model.pooling,
            options=arguments["options"],
            image_size=image_size,
        )
        if said != seen:
            arguments["features"] = seen
        return cls(model.backbone, classes, **arguments)


def sized_options(model: ModelConfig, image_size: int) -> dict[str, Any]:
    """The recipe's options, with `img_size` for backbones that are made for one size (ViT, Swin)."""
    config = timm.get_pretrained_cfg(model.backbone) if timm.is_model(model.backbone) else None
    fixed = config is not None and config.fixed_input_size
    return {"img_size": image_size, **model.options} if fixed else dict(model.options)


def make_backbone(
    name: str,
    *,
    in_chans: int = 3,
    stem: str = "timm",
    pooling: str = "timm",
    options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    weights: str | None = None,
) -> nn.Module:
    """A timm model without its classifier: images [B, C, H, W] -> pooled features [B, num_features].

    Args:
        pooling: with another than "timm" the model does not pool: -> maps [B, num_features, h, w]. Layers that timm has
            between pooling and classifier see the map.
        pretrained: start from timm's weights, which timm downloads.
        weights: start from a local .safetensors file with timm's names, wrapped or not (`networks.pretrained`); the
            first convolution is adapted to `in_chans`, position embeddings to the image size, as timm does it.

    Raises:
        ConfigError: a name or an option that timm does not know, or weights that cannot be had or do not fit.
    """
    if not timm.is_model(name):
        raise ConfigError(unknown("backbone", name, timm.list_models()))
    if refused := sorted(set(options or {}) & REFUSED_OPTIONS):
        raise ConfigError(f"backbone options {refused} are not taken: they would load weights or undo the recipe")
    given = dict(options or {})
    if pooling != "timm":
        if "global_pool" in given:
            raise ConfigError(
                f"model.options has global_pool={echo(given['global_pool'])} beside model.pooling={pooling!r}; valid: "
                "one of them"
            )
        given["global_pool"] = ""
    asked = "" if pooling == "timm" else f" (the last is model.pooling={pooling!r}; valid: timm)"
    source: dict[str, Any] = {}
    adapted: list[str] = []
    said = "model.pretrained"
    if weights is not None:
        check_weights_name(weights)
        if not place(weights).is_file():
            raise ConfigError(f"model.weights={weights!r} is not a .safetensors file that can be read")
        source = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(local(weights)), "custom_load": False}}
        said = f"model.weights={weights!r} does not fit {name!r}"
    elif pretrained:
        source = {"pretrained": True}
    try:
        with whole_weights(said, adapted) if source else nullcontext():
            model = timm.create_model(name, num_classes=0, in_chans=in_chans, **given, **source)
    except ConfigError:
        raise
    except (TypeError, KeyError, AssertionError) as error:
        raise ConfigError(f"backbone {name!r} does not take options {echo(given)}{asked}: {error}") from None
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        if not source:
            raise ConfigError(f"backbone {name!r} with options {echo(given)}: {one_line(error)}") from None
        if weights is not None:
            if _is_pickle(weights):
                raise ConfigError(f"model.weights={weights!r} is a pickle by another name; {CONVERTED}") from None
            raise ConfigError(f"{said}: {one_line(error)[:300]}") from None
        raise ConfigError(
            f"model.pretrained: timm could not get weights for {name!r} ({one_line(error)[:200]}); on a machine "
            "without a network set model.weights to a local .safetensors file instead"
        ) from None
    if weights is not None:
        with safe_open(str(local(weights)), framework="pt") as file:
            names = list(file.keys())
        if names and all(name.startswith("module.") for name in names):  # timm drops it while it reads the file
            adapted.insert(0, "'module.' before its names is left out")
    if adapted:
        model.adapted = f"model.weights={weights!r}: {'; '.join(adapted)}"
    if stem == "released":
        if not hasattr(model, "maxpool"):
            raise ConfigError(f"stem 'released' drops a max-pool, which backbone {name!r} does not have; valid: timm")
        model.maxpool = nn.Identity()
    elif stem != "timm":
        raise ConfigError(unknown("stem", stem, ("timm", "released")))
    return model


def _is_pickle(path: str) -> bool:
    """Whether a file begins as torch.save's do, a zip or a bare pickle; nothing of it is read into objects."""
    with local(path).open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _features_of(backbone: nn.Module) -> int:
    """Length of the vector that a timm model without its classifier gives for an image, by its own attributes. Some
    have a
    further layer between their features and the classifier (MobileNetV3, VGG, GhostNet), and two figures."""
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


_LARGE = 50_000_000
"""Weights of a backbone, of which more than three seconds would go into making it twice."""
_FILLED = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_})


class _NotFilled(TorchFunctionMode):
    """Inside, tensors are not filled with random numbers: without memory there is nothing to fill."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in _FILLED else function(*args, **(kwargs or {}))


def _weights_of(name: str, *, in_chans: int, stem: str, options: Mapping[str, Any]) -> int:
    """How many a backbone has, counted without memory for them; 0 for one that cannot be made so."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _NotFilled():
            made = make_backbone(name, in_chans=in_chans, stem=stem, options=options)
    except (ConfigError, MemoryError):
        raise
    except Exception:  # it looks at numbers while it is made
        return 0
    return sum(parameter.numel() for parameter in made.parameters())


def _seen_features(
    name: str, *, in_chans: int, stem: str, pooling: str, options: Mapping[str, Any], image_size: int
) -> tuple[int, int]:
    """`_features_of` a backbone, and the length of its output for an image of `image_size` pixels: of its vector, or
    where another `pooling` than timm's makes the vector, the channels of its map.

    A large backbone is run on torch's device without memory, where only shapes are computed: milliseconds, but torch's
    compiler is imported for it, which takes 3 s. Others, and those that look at numbers, are run on the CPU.

    ConfigError, in one line, for a backbone that does not take the image, or gives no [B, F] (no [B, F, h, w]).
    """
    image = f"{in_chans} x {image_size} x {image_size} pixels"
    output: Any = None
    large = _weights_of(name, in_chans=in_chans, stem=stem, options=options) > _LARGE
    for device in ("meta", "cpu") if large else ("cpu",):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device(device):
                backbone = make_backbone(name, in_chans=in_chans, stem=stem, pooling=pooling, options=options).eval()
                output = backbone(torch.zeros(1, in_chans, image_size, image_size))
            break
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # models raise errors of any kind for a size that they do not take
            if device == "cpu":
                raise ConfigError(
                    f"backbone {name!r} does not take an image of {image}: {one_line(error)[:200]}; valid: another "
                    "data.image_size, or model.options that suit it"
                ) from None
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if pooling != "timm":
        # Swin, MambaOut and others have channels last: [1, h, w, channels].
        plain = len(shape) == 4 and getattr(backbone, "output_fmt", "NCHW") == "NCHW"
        if not plain or (shape[1] != _features_of(backbone) == shape[3]):
            raise ConfigError(
                f"model.pooling={pooling!r} takes a map [1, channels, height, width], and backbone {name!r} gives "
                f"{shape} for an image of {image}; valid: model.pooling=timm"
            )
    elif not isinstance(output, Tensor) or output.dim() != 2:
        raise ConfigError(f"backbone {name!r} gives {shape} for an image of {image}, and not a vector ([1, features])")
    return _features_of(backbone), output.shape[1]
