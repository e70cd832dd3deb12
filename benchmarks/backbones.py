"""Which timm models work with which granularity: the smallest model of every family of timm, each in a process of its
own with a time limit. Prints the table of docs/BACKBONES.md, and a JSON line.

    python -m benchmarks.backbones > table.md               # an hour on one core
    python -m benchmarks.backbones --only resnet18 vgg11    # some models

A row comes of `prunnet doctor backbone NAME --image-size SIDE --train`, at 64 pixels or the size that the model is
made for. `works`, or the line that a user would read. Ends after `--minutes 90`; models that are left out by then are
named on the JSON line.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import timm

from benchmarks.common import Benchmark, parser_of
from prunnet.config.granularities import GRANULARITIES

MODELS = """
    beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb fasternet_t0
    fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny
    hrnet_w18_small iformer_t inception_next_atto inception_v3 inception_v4 lcnetv2_small
    levit_128s lowformer_b0 test_mambaout test_coatnet poolformerv2_s12 gmlp_ti16_224 lcnet_035
    mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small test_nfnet
    pit_ti_224 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50
    resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
    tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small visformer_tiny test_vit vit_tiny_r_s16_p8_224
    test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception
    xception41p xcit_nano_12_p8_224
    vgg11 resnet18 resnet50 resnext50_32x4d mobilenetv2_100 mobilenetv3_small_050 mobilenetv4_conv_small_035
    convnext_atto vit_tiny_patch16_224 eva02_tiny_patch14_224
"""
"""The smallest model, by weights, of each module of timm 1.0.31; without those of more than 50 million that no
option makes small, and some that are used often."""
SHALLOW = dict.fromkeys(
    ("beit_base_patch16_224", "naflexvit_base_patch16_parfac_gap", "samvit_base_patch16_224"), "{depth: 2}"
)
"""Options that make a model cheap."""


@dataclass(frozen=True)
class Found:
    """What became of a model: works or a line, by granularity, at an image size."""

    name: str
    size: int
    said: dict[str, str]
    seconds: float


def look(name: str, limit: float, benchmark: Benchmark) -> Found | None:
    """Runs doctor at 64 pixels, or at the model's own size if it does not take 64; None when no time is left."""
    if benchmark.left <= 0:
        return None
    benchmark.say(name)
    own = int(timm.get_pretrained_cfg(name).input_size[-1])  # type: ignore[union-attr]
    started = time.monotonic()
    for size in dict.fromkeys((64, own)):
        said = doctor(name, size, min(limit, max(benchmark.left, 1.0)))
        if not all("does not take an image" in line for line in said.values()):
            break
    return Found(name, size, said, time.monotonic() - started)


def doctor(name: str, size: int, limit: float) -> dict[str, str]:
    """The result of doctor for each granularity."""
    command = [
        sys.executable,
        "-m",
        "sweeps.cli",
        "doctor",
        "backbone",
        name,
        "--image-size",
        str(size),
        "--train",
    ]
    if name in SHALLOW:
        command += ["--set", f"model.options={SHALLOW[name]}"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode()
        return dict.fromkeys(GRANULARITIES, f"not finished after {limit:g} s") | _lines(printed)
    lines = _lines(ended.stdout)
    if "Traceback" in ended.stderr + ended.stdout:
        last = (ended.stderr + ended.stdout).strip().splitlines()[-1]
        return dict.fromkeys(GRANULARITIES, f"TRACEBACK {last}") | lines
    said = " ".join(ended.stderr.split()) or f"EXIT {ended.returncode}"
    return dict.fromkeys(GRANULARITIES, said) | lines


def _lines(printed: str) -> dict[str, str]:
    rows = (line.removeprefix("granularity ") for line in printed.splitlines() if line.startswith("granularity "))
    return dict(row.split(": ", 1) for row in rows)


def row(found: Found) -> str:
    """A line of the table."""
    said = [found.said[granularity] for granularity in GRANULARITIES]
    cells = [said[0]] if len(set(said)) == 1 and said[0] != "works" else said
    cells += [""] * (len(GRANULARITIES) - len(cells))
    options = f", `{SHALLOW[found.name]}`" if found.name in SHALLOW else ""
    texts = " | ".join(cell.replace("|", "\\|") for cell in cells)
    return f"| `{found.name}`{options} | {found.size} | {texts} |"


def main() -> None:
    parser = parser_of(__doc__, minutes=90)
    parser.add_argument("--only", nargs="*", default=[], help="Models of timm.")
    parser.add_argument("--limit", type=float, default=300.0, help="Seconds a model.")
    parser.add_argument("--together", type=int, default=1, help="Models at a time.")
    arguments = parser.parse_args()
    print("| model | px | " + " | ".join(GRANULARITIES) + " |")
    print("|---|---|" + "---|" * len(GRANULARITIES), flush=True)
    names = arguments.only or MODELS.split()
    with Benchmark(arguments.minutes) as benchmark, ThreadPoolExecutor(arguments.together) as pool:
        benchmark.stage(f"{len(names)} models")
        looked = pool.map(lambda name: look(name, arguments.limit, benchmark), names)
        for number, (name, found) in enumerate(zip(names, looked, strict=True), start=1):
            if found is None:
                benchmark.leave_out(name)
                continue
            print(row(found), flush=True)
            benchmark.say(f"{name}, {number} of {len(names)}: {found.seconds:.0f} s")
            benchmark.found(models=number)


if __name__ == "__main__":
    main()
