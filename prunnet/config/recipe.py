"""The recipe: typed, validated sections, read from YAML and changed by dotted overrides.

`Recipe` = `data, model, train, sweep, cluster`. An unknown key fails and names the nearest valid one.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import to_jsonable_python

from prunnet.config.augmentations import Stated, check_augment
from prunnet.config.choices import check_capacity
from prunnet.config.colours import check_colour
from prunnet.config.granularities import GRANULARITIES, check_allocation, check_density
from prunnet.config.losses import Value, check_batches
from prunnet.config.methods import METHODS, check_reconstruction, revisions, settle
from prunnet.config.rerankings import check_rerank
from prunnet.errors import ConfigError, echo, unknown
from prunnet.redact import shown
from prunnet.storage.hashing import METHOD_VERSION, calibrations_of, of_file, of_json, weights_sha_of, without_defaults
from prunnet.storage.paths import is_url
from prunnet.storage.yaml_reader import parse_yaml, read_yaml

Capacity = Annotated[float, AfterValidator(check_capacity)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MAX_SIDE = 2**14
"""Pixels of an image's side, at most: 800 MB in colour."""
Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]


PixelValues = float | tuple[float, float, float]
"""Of all channels, or of red, green and blue."""


def _per_channel(given: Any) -> Any:
    """One message for what is neither a number nor three: pydantic would explain every member of the union."""
    numbers = given if isinstance(given, (list, tuple)) else [given] * 3
    try:
        fits = len(numbers) == 3 and all(math.isfinite(float(number)) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits and given is not None:
        raise ValueError("valid: a number, or a list of three")
    return given


def _positive(given: PixelValues | None) -> PixelValues | None:
    numbers = given if isinstance(given, tuple) else (given,)
    if any(number is not None and number <= 0 for number in numbers):
        raise ValueError("valid: above 0")
    return given


Protocol = Literal["leave_one_out", "query_gallery", "catalogue", "catalogue_all"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images, which classes are held out, and how images are preprocessed and augmented."""

    name: str = "glyphs"
    root: str | None = None
    """Folder, .zip or packed store (`prunnet pack`) of the data set; docs/DATA.md describes the layouts."""
    download: bool = False
    """cifar100, omniglot: download what is missing in `root`."""
    boxes: bool = False
    """inshop: cut every image to its box."""
    image_size: Side = 32
    """Pixels, side of the square that the network sees."""
    resize: Side | None = None
    """Pixels of the shorter side before the crop to image_size; None: image_size, no crop."""
    channels: Literal[1, 3] = 1
    invert: bool = False
    """Swap black and white, for dark ink on light paper."""
    background: Annotated[str, AfterValidator(check_colour)] = "#ffffff"
    """What shows through transparent pixels, before `invert`: a name such as black, or #rrggbb in quotes."""
    mean: Annotated[PixelValues | None, BeforeValidator(_per_channel)] = None
    """Pixel mean in [0, 1], of all channels or a list of three. None: with pretrained weights (`model.pretrained`,
    `model.weights`) the backbone's own, as timm has it; otherwise 0.5 (grey) or ImageNet's (colour)."""
    std: Annotated[PixelValues | None, BeforeValidator(_per_channel), AfterValidator(_positive)] = None
    """Pixel standard deviation above 0; as `mean`."""
    seed: Seed = 0
    images_per_class: Annotated[int, Field(ge=1, le=100_000)] = 20
    """glyphs, colour_glyphs: images rendered a class."""
    classes: Annotated[int, Field(ge=2, lt=2**31)] = 400
    """glyphs, colour_glyphs: training classes (letters), at most."""
    holdout: Literal["class", "top_folder", "list"] = "class"
    """imagefolder only: what `test` and `validation` name: class folders, top folders, or text files with
    one class folder a line."""
    test: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test_fraction: Fraction = 0.2
    """imagefolder: share of classes (or top folders) drawn from the seed where `test` is empty."""
    validation_fraction: Fraction | None = None
    """Share of classes held out for validation; None: a tenth for imagefolder, none of a benchmark's classes."""
    train_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training classes that is used, drawn from the seed; for an old network that has seen less."""
    protocol: Protocol = "leave_one_out"
    """What a query searches. leave_one_out: the other test images; query_gallery: the images of its class that are no
    queries, and those of others; grocery only: catalogue, the catalogue pictures of the unseen classes, and
    catalogue_all, those of all classes."""
    queries_per_class: Positive = 1
    """query_gallery only: images of a class that become queries."""
    skip_unreadable: bool = False
    """Leave unreadable images out (counted and named) instead of stopping."""
    fingerprint: Literal["times", "sizes", "content"] = "times"
    """How changed training images are noticed when a training is resumed or found finished. times: names, sizes and
    modification times; sizes: names and sizes, for a copy with other times; content: names and bytes, which reads every
    file."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Augmentation of training images: degrees, uniform in ±rotate."""
    translate: Annotated[float, Field(ge=0, le=1)] = 0.08
    """Share of the side, uniform in ±translate."""
    scale: Annotated[float, Field(ge=0)] = 0.15
    """Log-uniform in 1/(1 + scale) … 1 + scale."""
    shear: Annotated[float, Field(ge=0, lt=90)] = 8.0
    """Degrees, uniform in ±shear."""
    flip: bool = False
    """Horizontal flip of half of the training images; right for photographs, wrong for letters."""
    augment: Annotated[tuple[Stated, ...] | None, BeforeValidator(check_augment)] = None
    """Augmentations of training images one after another, a list of {name: parameters}, in place of rotate, translate,
    scale, shear and flip: see `prunnet.config.augmentations`, docs/DATA.md. []: none but the crop."""

    @model_validator(mode="after")
    def _values_fit_the_channels(self) -> DataConfig:
        for key in ("mean", "std"):
            given = getattr(self, key)
            if isinstance(given, tuple) and self.channels != len(given):
                raise ConfigError(
                    f"data.{key}={echo(list(given))} makes no sense with data.channels={self.channels}; valid: a number"
                )
        return self


CONVERTED = (
    "pickles are not opened, since they can run code; where you trust it, convert it by "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NAME.safetensors), or with the state dict in it"
)
"""How a file of weights becomes one that is taken."""


def check_weights_name(path: str | None) -> str | None:
    """ConfigError for a path of weights that no .safetensors file has."""
    if path is None or path.endswith(".safetensors"):
        return path
    pickled = path.endswith((".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar"))
    how = f"; {CONVERTED}" if pickled else " that can be read"
    raise ConfigError(f"model.weights={shown(path)!r} is not a .safetensors file{how}")


class ModelConfig(Section):
    """The network: any timm backbone, neck and classifier."""

    backbone: str = "resnet18"
    options: dict[str, Any] = {}
    """Keyword arguments for timm.create_model, such as {channels: [32, 64, 128, 256]}."""
    embedding_dim: Annotated[int, Field(ge=1, le=65_536)] = 256
    stem: Literal["timm", "released"] = "timm"
    """released: no max-pool after the stem, as in PrunNet's released ResNet-18."""
    neck_norm: Literal["batch", "none"] = "batch"
    pooling: Literal["timm", "avg", "max", "gem"] = "timm"
    """What makes a vector of the backbone's map. timm: what the backbone itself does; gem: the generalised mean with a
    learned exponent. Others than timm need a backbone of convolutions."""
    gem_p: Annotated[float, Field(gt=0)] = 3.0
    """gem only: the exponent at the start."""
    pretrained: bool = False
    """Start from timm's weights for this backbone, which timm downloads."""
    weights: Annotated[str | None, AfterValidator(check_weights_name)] = None
    """Start from a backbone's weights in a local .safetensors file, as timm names them; no network is needed. Names
    behind `module.`, `state_dict.` and the like, half precision and any classifier are adapted, and it is said."""
    checkpoint: str | None = None
    """A trained network (model.safetensors of a run): sweep it instead of training one."""


class TrainConfig(Section):
    """How the network is trained (docs/METHODS.md, sections 2 to 5).

    A variant that is None takes the method's own value; what a method does not leave open is refused.
    """

    method: str = "prunnet"
    """See `prunnet.config.methods.METHODS`."""
    capacities: tuple[Capacity, ...] = (0.8, 0.6, 0.4, 0.2)
    """Trained beside the dense network. Single-network methods train one network for each, after the dense one."""
    alone: Capacity | None = None
    """Single-network methods: train only the network of this capacity."""
    old: str | None = None
    """Checkpoint (model.safetensors) of the network whose embeddings the new one must match."""
    compatible: str | None = None
    """Adds the compatibility loss of that method (bct, asymmetric, regression, prototypes, ndpp, odpp), against `old`,
    to every pass of a method that trains all capacities in one network."""
    compatible_weight: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the compatibility loss."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """prototypes, ndpp, odpp: of the softmax over cosines."""
    perturb: Literal["positive", "all"] = "positive"
    """ndpp, odpp: the image's own prototype is the perturbed one (as released), or all are."""
    neighbours: Positive | None = None
    """ndpp: K; None: classes / 240, at least 5 (100 at the paper's 24,393 classes)."""
    ndpp_scale: Literal["paper", "released"] = "paper"
    """ndpp: how far old prototypes are pushed from old and new ones, 0.4 and 0.01; released: 0.16 and 0.004."""
    bct_unknown: Literal["skip", "synthesise"] = "skip"
    """bct: images of classes that the old classifier does not know. skip: they count as zero; synthesise: the
    classifier gets rows for these classes, made from old embeddings."""
    loss: str = "cross_entropy"
    """The network's own loss, of every pass, by name (`prunnet.config.losses.LOSSES`; docs/METHODS.md, section 8).
    Losses of pairs need `sampling: balanced`."""
    loss_options: dict[str, Value] = {}
    """Options of the loss, such as {scale: 16, margin: 0.2} of cosface; what is left out takes the loss' default."""
    epochs: Positive = 10
    batch_size: Positive = 64
    """Images a step, over all workers."""
    accumulate: Positive = 1
    """Parts of a worker's share of the batch that run one after another, their gradients averaged, to save memory.
    BatchNorm and losses that compare images see a part at a time."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """balanced: P x K batches, `per_class` images of each of batch_size / per_class classes, all classes equally often;
    for losses that compare images within a batch."""
    per_class: Annotated[int, Field(ge=2, lt=2**63)] = 4
    """balanced only: K."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    backbone_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the backbone's weights, for one that starts from `model.pretrained` or `model.weights`; None:
    lr. Scores have `score_lr`."""
    freeze: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Modules of the network whose weights do not train and whose BatchNorm statistics stay, with all that they hold:
    names such as backbone.blocks.0, or patterns such as backbone.*.bn*. Their masks are learned nevertheless."""
    freeze_scores: bool = False
    """The scores of what `freeze` names do not train either: their masks stay what `score_init` makes them."""
    score_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the scores; None: see `score_rate`."""
    teacher_lr: Annotated[float, Field(gt=0)] | None = None
    """bct, asymmetric, regression: learning rate of the dense network that the others match; None: lr."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd only."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (1 / 6, 1 / 3, 2 / 3)
    """step only: shares of the training after which the rate falls to a tenth."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 100.0
    label_smoothing: Fraction = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of an exponential moving average of weights, scores and BatchNorm statistics, which is what is
    validated, saved and tested; None: the network of the last step is."""
    score_init: Literal["kaiming_uniform", "normal", "magnitude", "snip", "constant"] | None = None
    granularity: str = "weight"
    """What one score stands for. weight: a weight, as in the paper; nm: a weight, of which 2 of 4 along the input stay;
    kernel: a convolution's kernel; channel: a channel with all that is tied to it, so that a subnetwork is a smaller
    plain network, and capacity the fraction of the prunable MACs."""
    channel_multiple: Positive = 8
    """channel only: layers keep a multiple of so many channels."""
    allocation: Literal["layer", "global"] | None = None
    """layer: the same capacity in every layer; global: one threshold over all layers, 1% of each kept at least."""
    capacity_sampling: Literal["fixed", "random", "sandwich"] | None = None
    """random: as many as `capacities`, drawn anew each step between the smallest and the largest of them;
    sandwich: the smallest, and the others drawn so. The dense network is trained beside them in any case."""
    projection: Literal["none", "last", "sequential"] | None = None
    block: Literal["kernel", "tensor", "network"] | None = None
    weighting: Literal["mean", "cosine", "mgda", "uncertainty"] | None = None
    exponent: Annotated[float, Field(ge=0)] = 0.5
    """cosine only."""
    evidential: Literal["exp", "softplus", "none"] | None = None
    """sfsc only: what makes evidence of a logit; none: cross-entropy."""
    priorities: Literal["uncertainty", "equal"] | None = None
    """sfsc only: how much each width's gradient counts."""
    reduction: Literal["sum", "mean"] | None = None
    """sfsc only: of the projected gradients."""
    evidence: Annotated[float, Field(ge=0)] = 1.0
    """sfsc only: what the weight of the KL term is annealed to, over the first half of the training."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast and channels-last where the CPU has bf16 instructions or there is a GPU."""
    seed: Seed = 0
    checkpoint_every_steps: Positive | None = None
    """Checkpoints inside an epoch too, beside the one at its end."""
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _variants_fit_the_method(cls, given: Any) -> Any:
        return settle(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _capacities_are_distinct(self) -> TrainConfig:
        single = METHODS[self.method].single
        if not self.capacities and not single:
            raise ConfigError("train.capacities is empty; valid: one or more numbers in (0, 1)")
        if len(set(self.capacities)) != len(self.capacities) or 1.0 in self.capacities:
            raise ConfigError(
                f"train.capacities {echo(list(self.capacities))} must be distinct and below 1.0: "
                "the dense network is always trained beside them"
            )
        if METHODS[self.method].network == "widths" and self.granularity != "weight":
            raise ConfigError(
                f"train.granularity={self.granularity!r} makes no sense with train.method={self.method!r}: a "
                "switchable network has widths, and no scores"
            )
        check_batches(self.loss, self.sampling, self.batch_size, self.accumulate, self.per_class)
        check_density(self.granularity, [*self.capacities, *([self.alone] if self.alone else [])])
        check_allocation(self.granularity, self.allocation or "layer")
        if self.alone is not None and not single:
            raise ConfigError(
                f"train.alone={self.alone} makes no sense with train.method={self.method!r}: it trains "
                "one network for all capacities"
            )
        return self

    @property
    def score_rate(self) -> float:
        """Learning rate of the scores: `score_lr`, by default that of the weights, or as many times less as the
        granularity says."""
        return self.lr / GRANULARITIES[self.granularity].slower if self.score_lr is None else self.score_lr


def _off(given: Any) -> Any:
    """YAML reads a bare `off` as a truth value."""
    return "off" if given is False else given


class SweepConfig(Section):
    """Which capacities are cut from the trained network, and how they are tested."""

    capacities: tuple[Capacity, ...] = (1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
    dataset: str | None = None
    """Test on this data set instead of the one in `data`: for example a network trained on gldv2 on roxford5k."""
    root: str | None = None
    """Its folder, .zip or packed store."""
    protocol: Protocol | None = None
    """Test under this protocol instead of `data.protocol`: one training serves both."""
    long_side: Side | None = None
    """Test on whole images, brought down to so many pixels along their longer side, instead of the centre crop."""
    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1.0,)
    """Average the embeddings of each image at these sizes."""
    flip: bool = False
    """Average the embeddings of each image and its mirror image (left to right), at each of the `scales`."""
    rerank: Annotated[tuple[Stated, ...], BeforeValidator(check_rerank)] = ()
    """Re-rankings after the search, a list of names or {name: parameters}: see `prunnet.config.rerankings`,
    docs/METHODS.md, section 6. Each adds rows to those of the self-tests and of the cross-tests in the dense (or old)
    network's gallery; the rows without it stay as they are."""
    gallery: Literal["matrix", "dense"] = "matrix"
    """matrix: every capacity against every capacity; dense: self-tests and cross-tests against 1.0."""
    split: Literal["test", "validation"] = "test"
    calibrate: bool = True
    """Re-estimate BatchNorm statistics for every subnetwork."""
    calibration_images: Positive = 1024
    reconstruct: bool = False
    """Refit the kept weights of every subnetwork, layer by layer, so that each layer puts out what the dense network's
    does (docs/METHODS.md, section 2, after training). It needs `calibrate`."""
    reconstruct_images: Positive = 512
    """reconstruct only: of the calibration images, all in memory at once."""
    ridge: Annotated[float, Field(gt=0)] = 0.5
    """reconstruct only: pull towards the trained weights."""
    masks: Literal["scores", "random"] = "scores"
    """random: the control; masks of the same sizes drawn at random instead of by the learned scores."""
    inside: Capacity = 1.0
    """Granularity channel: within-channel density, the share of the weights inside kept channels that is kept, by
    magnitude."""
    measure: Annotated[Literal["off", "eager", "compile", "onnxruntime"], BeforeValidator(_off)] = "off"
    """Also measure latency, size and peak memory of each capacity's compact network, on the machine of the driver,
    before the evaluation begins."""
    measure_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    sheet: Annotated[int, Field(ge=0, le=50)] = 6
    """Queries on the report's contact sheet of what each capacity finds; 0: no sheet."""
    batch_size: Positive = 256
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_capacity(self) -> SweepConfig:
        if not self.capacities:
            raise ConfigError("sweep.capacities is empty; valid: one or more numbers in (0, 1]")
        if self.reconstruct and not self.calibrate:
            raise ConfigError(
                "sweep.reconstruct=true makes no sense with sweep.calibrate=false: BatchNorm's statistics are of other "
                "numbers than refitted layers put out"
            )
        return self


class ClusterConfig(Section):
    """What the job asks of the cluster."""

    workers: Positive = 2
    """Data-parallel training processes."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    loaders: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes that decode images for each training worker, where they are files, and make what `data.augment` says of
    them; 0: threads of the worker decode, and the worker augments."""
    actors: Positive = 2
    """Evaluation actors."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    max_failures: Annotated[int, Field(ge=0, lt=2**31)] = 3
    """Worker failures that a training survives."""
    preemption_steps: Annotated[int, Field(ge=0, lt=2**31)] = 25
    """Steps between checks for a notice that a node will be taken away, which triggers a checkpoint; 0: no checks."""
    attempts: Positive = 3
    """Times that a capacity is tried before it is reported as failed."""
    wait_minutes: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for a growing cluster (an autoscaler is asked at once) before it is refused as too small."""
    storage: str | None = None
    """Folder of runs, shared by all nodes, or a URL (s3://bucket/runs, gs://…); None: ./runs, or ~/prunnet-runs in a
    submitted job."""


@dataclass(frozen=True)
class FilesSeen:
    """What identifies the files that a training starts from, so that its hash opens none of them."""

    old: str | None
    weights: str | None
    """Paths of `train.old` and `model.weights`."""
    old_sha: str | None
    weights_sha: str | None
    calibrations: tuple[str, ...]
    """Of the images that the old network's BatchNorm statistics were estimated on."""

    def fit(self, recipe: Recipe) -> bool:
        """Whether they are the recipe's files."""
        return (self.old, self.weights) == (recipe.train.old, recipe.model.weights)


class Recipe(Section):
    """One job. `name` is the run's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "capacity"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    _files: FilesSeen = PrivateAttr(default=FilesSeen(None, None, None, None, ()))

    @model_validator(mode="after")
    def _sweep_fits_the_training(self) -> Recipe:
        if not self.model.checkpoint:  # its file records the granularity and the method
            check_density(self.train.granularity, self.sweep.capacities)
            if self.sweep.reconstruct:
                check_reconstruction(self.train.method)
        return self

    def with_files_seen(self) -> Recipe:
        """The recipe, for `training_hash`, with what identifies `train.old` and `model.weights`: they are opened here,
        once. CheckpointError where one cannot be read or is no network."""
        if self._files.fit(self):
            return self
        old, weights = self.train.old, self.model.weights
        seen = self.model_copy()
        seen._files = FilesSeen(
            old,
            weights,
            weights_sha_of(old) if old else None,
            of_file(weights) if weights else None,
            tuple(calibrations_of(old)),
        )
        return seen

    @property
    def takes_pixel_values(self) -> bool:
        """Whether mean or std of pixels are those of pretrained weights (`prunnet.data.pixel_values`)."""
        pretrained = self.model.pretrained or self.model.weights is not None
        return pretrained and (self.data.mean is None or self.data.std is None)

    def training_hash(self) -> str:
        """Hash of everything that determines the trained weights (workers included: they shape the sums). Opens no
        file: a recipe with `train.old` or `model.weights` must be one `with_files_seen`."""
        part = self.trained_part()
        revised = [*revisions(part["train"]), *self._files.calibrations]
        if self.takes_pixel_values:  # networks of before had ImageNet's, or 0.5 in grey
            revised.append("mean and std of the backbone's weights")
        return of_json([METHOD_VERSION, part, self.cluster.workers, *revised])

    def trained_part(self) -> dict[str, Any]:
        """Sections `data`, `model`, `train` as JSON values, without the keys that do not touch the weights, and without
        the credentials of URLs."""
        parts = self.model_dump(mode="json", include={"data", "model", "train"})
        for key in ("checkpoint_every_steps", "checkpoint_every_minutes"):
            del parts["train"][key]
        del parts["data"]["fingerprint"]
        granularity = GRANULARITIES[self.train.granularity]
        if granularity.slower != 1.0:
            parts["train"]["score_lr"] = self.train.score_rate
        if not granularity.channels:
            del parts["train"]["channel_multiple"]
        for name, keys in FIRST_KEYS.items():
            parts[name] = without_defaults(parts[name], later_defaults(getattr(self, name), keys))
        assert self._files.fit(self), "with_files_seen first"
        if self.train.old:  # which network it is, not where it lies
            parts["train"]["old"] = self._files.old_sha
        if self.model.weights:
            parts["model"]["weights"] = self._files.weights_sha
        return shown(parts)


_DATA = """
    name root download boxes image_size resize channels invert mean std seed images_per_class classes holdout test
    validation test_fraction validation_fraction train_fraction protocol queries_per_class skip_unreadable rotate
    translate scale shear flip
"""
_MODEL = "backbone options embedding_dim stem neck_norm pretrained weights checkpoint"
_TRAIN = """
    method capacities alone old compatible compatible_weight temperature perturb neighbours epochs batch_size sampling
    per_class optimizer lr score_lr teacher_lr momentum weight_decay schedule milestones warmup_epochs clip_norm
    label_smoothing score_init channel_multiple allocation capacity_sampling projection block weighting exponent
    priorities reduction evidence precision seed
"""
FIRST_KEYS = {"data": frozenset(_DATA.split()), "model": frozenset(_MODEL.split()), "train": frozenset(_TRAIN.split())}
"""Keys that are part of the training's hash whatever they are. Any other key, since it came after the first trainings
were kept, is left out at its default: those trainings still count as the same."""


def field_defaults(section: BaseModel) -> dict[str, Any]:
    """Key -> default, as JSON values, before a method settles any of them."""
    return {key: to_jsonable_python(found.default) for key, found in type(section).model_fields.items()}


def later_defaults(section: BaseModel, first: Collection[str]) -> dict[str, Any]:
    """The defaults of the keys that are not among the `first`, for `hashing.without_defaults`."""
    return {key: value for key, value in field_defaults(section).items() if key not in first}


def load_recipe(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a YAML file (None: all defaults) after `overrides` such as `train.epochs=3`.

    Raises ConfigError, in one line, for a missing file, broken YAML, an unknown key or a value out of range.
    """
    tree: dict[str, Any] = {} if path is None else _sections_of(Path(path))
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree)


def parse_recipe(tree: dict[str, Any]) -> Recipe:
    """The validated recipe of a nested dict."""
    _check_keys(Recipe, tree, prefix="")
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def _sections_of(path: Path) -> dict[str, Any]:
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"recipe {echo(str(path))} holds a {type(tree).__name__}; valid: sections {_sections()}")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted.strip():
        raise ConfigError(f"--set {echo(override)} is not KEY=VALUE; example: --set train.epochs=3")
    *sections, key = dotted.strip().split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {echo(override)}: {echo(section)} is not a section; valid: {_sections()}")
    node[key] = parse_yaml(text, f"--set {echo(override)}: the value")


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with the paths that workers open made absolute: they run in folders of their own."""
    changes: dict[str, Any] = {}
    data = recipe.data
    if data.root:
        update: dict[str, Any] = {"root": absolute(data.root)}
        if data.holdout == "list":
            update |= {
                "test": tuple(map(absolute, data.test)),
                "validation": tuple(map(absolute, data.validation)),
            }
        changes["data"] = data.model_copy(update=update)
    model = {k: absolute(v) for k in ("checkpoint", "weights") if (v := getattr(recipe.model, k))}
    if model:
        changes["model"] = recipe.model.model_copy(update=model)
    if recipe.sweep.root:
        changes["sweep"] = recipe.sweep.model_copy(update={"root": absolute(recipe.sweep.root)})
    if recipe.train.old:
        changes["train"] = recipe.train.model_copy(update={"old": absolute(recipe.train.old)})
    return recipe.model_copy(update=changes)


def absolute(path: str) -> str:
    """A path of this machine, or a URL with the variables of the environment in it, which may hold its credentials."""
    return (
        os.path.expandvars(path) if is_url(path) else os.path.abspath(os.path.expanduser(path.removeprefix("file://")))
    )


def changed(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts with some dotted keys set, such as {"train.lr": 0.1}."""
    copied = copy.deepcopy(dict(tree))
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = copied
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{key}: {section!r} is {echo(node)}; valid: a mapping")
        node[last] = value
    return copied


def _check_keys(model: type[BaseModel], tree: dict[str, Any], prefix: str) -> None:
    """Names the nearest valid key for each key that the model does not have."""
    for key, value in tree.items():
        field = model.model_fields.get(str(key))
        if field is None:
            raise ConfigError(unknown("recipe key", f"{prefix}{key}", (prefix + f for f in model.model_fields)))
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if not isinstance(value, dict):
                valid = list(annotation.model_fields)
                raise ConfigError(f"recipe section {key!r} is {echo(value)}; valid: a mapping with keys {valid}")
            _check_keys(annotation, value, prefix=f"{prefix}{key}.")


_ITEMS = 8
"""Errors of one file that a message lists, at most."""


def explain(error: ValidationError) -> str:
    def line(item: Any) -> str:
        where = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            return f"unknown key {where!r}"
        if item["type"] == "missing":
            return f"key {where!r} is missing"
        if item["type"] == "value_error" and isinstance(item["input"], (dict, BaseModel)):
            return message  # of a whole section, and names its keys
        return f"{where}: {message} (given: {echo(item['input'])})" if where else message

    items: Sequence[Any] = error.errors(include_url=False)
    more = [f"{len(items) - _ITEMS} more"] if len(items) > _ITEMS else []
    return "; ".join([*map(line, items[:_ITEMS]), *more])


def _sections() -> str:
    return ", ".join(Recipe.model_fields)
