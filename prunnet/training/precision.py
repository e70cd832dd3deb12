"""In which type and memory format a network is trained: what `train.precision` means on this device, as far as the
device computes the network's convolutions right. All workers settle on the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunnet.errors import ConfigError
from prunnet.training import convolutions
from prunnet.training.convolutions import SMALL, Kind
from prunnet.training.gradients.reducer import Reducer

if TYPE_CHECKING:
    from prunnet.networks.retrieval_net import RetrievalNet

LAST, PLAIN = torch.channels_last, torch.contiguous_format
_ONE_PIXEL = "a strided convolution of this backbone sees a map of one pixel, whose bf16 gradients are wrong on CPUs"


@dataclass(frozen=True)
class Numerics:
    """How the passes of a training compute."""

    dtype: torch.dtype
    layout: torch.memory_format
    notes: tuple[str, ...] = ()
    """What was not used although it would have been faster, and why; a line each."""


def settle(
    precision: str,
    net: RetrievalNet,
    device: torch.device,
    image_size: int,
    *,
    batch: int = 8,
    layout: torch.memory_format | None = None,
    reducer: Reducer | None = None,
) -> Numerics:
    """The fastest that is right: under `auto` bf16 and channels-last where the device has bf16 instructions.

    oneDNN's bf16 gradient of a 3x3 convolution with stride 2 on a map of one pixel is uninitialised memory (torch
    2.15 on an AVX-512 CPU), so a network whose maps shrink that far trains in fp32. `training.convolutions` has more.

    Args:
        batch: images of a pass.
        layout: a memory format that must be taken; None: the fastest.

    Raises:
        ConfigError: a precision or layout that was asked for and is wrong on the CPU of some worker.
    """
    reducer = reducer or Reducer()
    bf16 = [(torch.bfloat16, LAST), (torch.bfloat16, PLAIN)]
    choices = {"auto": [*bf16, (torch.float32, PLAIN)], "bf16": bf16, "fp32": [(torch.float32, PLAIN)]}[precision]
    if layout is not None:
        choices = list(dict.fromkeys((dtype, layout) for dtype, _ in choices))
    fast = device.type == "cuda" or fast_bf16()
    notes: list[str] = []
    why = ""
    for dtype, chosen in choices:  # the same on all workers, which all check each
        slow = precision == "auto" and dtype == torch.bfloat16 and not fast
        fault = None if slow else fault_of(net, device, image_size, batch, dtype, chosen)
        usable = torch.tensor(float(not slow and fault is None), device=device)
        if float(reducer.gather(usable).min()) == 1.0:
            return Numerics(dtype, chosen, tuple(dict.fromkeys(notes)))
        if fault is not None:
            named = "bf16" if fault == _ONE_PIXEL else _named(dtype, chosen)
            notes.append(f"{named} is not used: {fault}")
        why = fault or why or "it is wrong on another worker's processor"
    raise ConfigError(
        f"train.precision={precision} with data.image_size={image_size}: {why}; valid: "
        + ("fp32, or larger images" if why == _ONE_PIXEL else "ONEDNN_MAX_CPU_ISA=SSE41 in every worker's environment")
    )


def fast_bf16() -> bool:
    """Whether this CPU has bf16 instructions, and oneDNN may use them; without, bf16 is many times slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() and convolutions.has_avx512()


def _named(dtype: torch.dtype, layout: torch.memory_format) -> str:
    return f"{'bf16' if dtype == torch.bfloat16 else 'fp32'}, {'channels-last' if layout == LAST else 'contiguous'}"


def fault_of(
    net: RetrievalNet,
    device: torch.device,
    image_size: int,
    batch: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> str | None:
    """What of the network this device would compute wrong in a type and a memory format; None: nothing that is known.

    Only kinds are tried that `convolutions.suspicious` names, in a child process (2 s), once for each network.
    """
    if device.type != "cpu" or (dtype == torch.float32 and convolutions.has_avx512()):
        return None
    kinds = kinds_of(net, image_size, batch, dtype, layout)
    if dtype == torch.bfloat16 and any(map(_strides_over_one_pixel, kinds)):
        return _ONE_PIXEL
    wrong = convolutions.wrong(kind for kind in kinds if convolutions.suspicious(kind))
    if not wrong:
        return None
    kind, said = next(iter(wrong.items()))
    more = f" (and {len(wrong) - 1} more kinds)" if len(wrong) > 1 else ""
    return f"this processor computes a convolution wrong, {kind}: {said}{more}"


def _strides_over_one_pixel(kind: Kind) -> bool:
    return max(kind.stride) > 1 and max(kind.kernel) > 1 and min(kind.size) == 1


def kinds_of(
    net: RetrievalNet, image_size: int, batch: int, dtype: torch.dtype, layout: torch.memory_format
) -> list[Kind]:
    """The convolutions of the network's passes, each once: at all widths of a switchable network, and at every number
    of channels below `SMALL` to which a cut of channels can bring a layer."""
    from prunnet.networks.switchable import SwitchableNet

    found: dict[Kind, None] = {}
    with _recorded(net, batch, dtype, found) as run:
        like = next(net.parameters())
        image = torch.zeros(1, net.spec["in_chans"], image_size, image_size).to(like)
        image = image.contiguous(memory_format=layout)
        tensors = {name: _laid_out(parameter.detach(), layout) for name, parameter in net.named_parameters()}
        run(tensors, image)
        for index in range(len(net.switch)) if isinstance(net, SwitchableNet) else ():
            assert isinstance(net, SwitchableNet)
            with net.narrowed(index):
                run({name: _laid_out(t.detach(), layout) for name, t in net.sub_model(index).items()}, image)
    if net.channels is not None:
        multiple = int(net.spec["channel_multiple"])
        for kind in list(found):
            found |= dict.fromkeys(_cuts(kind, multiple))
    return list(found)


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    return tensor.to(memory_format=layout) if tensor.dim() == 4 else tensor


@contextmanager
def _recorded(
    net: RetrievalNet, batch: int, dtype: torch.dtype, found: dict[Kind, None]
) -> Iterator[Callable[[dict[str, Tensor], Tensor], None]]:
    """A way to run the network with other tensors, which puts each convolution's kind into `found`."""

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        if module.weight.dtype != torch.float64:
            found[_kind(module, inputs[0], batch, dtype)] = None

    @torch.no_grad()
    def run(tensors: dict[str, Tensor], image: Tensor) -> None:
        functional_call(net, tensors, (image,), tie_weights=False)

    training = net.training
    with ExitStack() as stack:
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                stack.callback(module.register_forward_pre_hook(look).remove)
        stack.callback(net.train, training)
        net.eval()
        yield run


def _kind(module: nn.Conv2d, given: Tensor, batch: int, dtype: torch.dtype) -> Kind:
    """As the layer is called now; `batch` images, fewer where the maps are large."""
    weight, (height, width) = module.weight, given.shape[-2:]
    padding = module.padding
    if isinstance(padding, str):  # same or valid: at one stride only
        same = [d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = (same[0], same[1]) if padding == "same" else (0, 0)
    return Kind(
        in_channels=given.shape[1],
        out_channels=weight.shape[0],
        kernel=tuple(weight.shape[-2:]),  # type: ignore[arg-type]
        stride=tuple(module.stride),  # type: ignore[arg-type]
        padding=tuple(padding),  # type: ignore[arg-type]
        dilation=tuple(module.dilation),  # type: ignore[arg-type]
        groups=given.shape[1] // weight.shape[1],
        size=(height, width),
        batch=max(1, min(batch, 8, 2**15 // (height * width))),
        # As torch chooses: by either's strides, which of 1x1 weights fit both formats.
        channels_last=any(map(_is_channels_last, (given, weight))),
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
    )


def _is_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes a tensor [A, C, H, W] for channels-last, by its strides. `torch._prims_common` has the same,
    and imports sympy for it, which takes a second."""
    shape, strides = tensor.shape, tensor.stride()
    if tensor.dim() != 4 or tensor.layout != torch.strided or strides[1] == 0:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if shape[dim] == 0 or strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * shape[dim]
    return True


def _cuts(kind: Kind, multiple: int) -> Iterator[Kind]:
    """The same layer with few channels left, at either end."""
    if kind.groups > 1:
        if kind.in_channels == kind.out_channels == kind.groups:
            for few in range(multiple, min(SMALL, kind.groups), multiple):
                yield replace(kind, in_channels=few, out_channels=few, groups=few)
        return
    reads = [*range(multiple, min(SMALL, kind.in_channels), multiple), kind.in_channels]
    makes = [*range(multiple, min(SMALL, kind.out_channels), multiple), kind.out_channels]
    for one in reads:
        for other in makes:
            yield replace(kind, in_channels=one, out_channels=other)
