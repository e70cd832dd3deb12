"""How much of what a network keeps at 20% its best quarter holds: what is left at 5%.

    python -m benchmarks.concentration runs/methods_omniglot/models

For every network of an ablation that was trained at 20% (alone, or among other capacities): the mean over its layers of
the sum of squared weights under the 5% mask over that under the 20% mask. One line a network. Ends after `--minutes 5`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.common import Benchmark, parser_of
from prunnet.experiments.row_identity import method_name
from prunnet.networks.files import load_network
from prunnet.networks.retrieval_net import RetrievalNet
from prunnet.pruning import prunable
from prunnet.pruning.masks import top_k_mask

KEPT, LEFT = 0.2, 0.05


@torch.no_grad()
def share_left(net: RetrievalNet) -> float:
    """Mean over the layers, 0.25 where all kept weights are alike, 1 where the best quarter holds everything."""
    shares = []
    for layer in prunable.layers(net).values():
        energy, score = layer.get_parameter("weight") ** 2, layer.get_parameter("score")
        kept, left = (float(energy[top_k_mask(score, capacity)].sum()) for capacity in (KEPT, LEFT))
        shares.append(left / kept)
    return sum(shares) / len(shares)


def main() -> None:
    parser = parser_of(__doc__, minutes=5)
    parser.add_argument("models", type=Path)
    given = parser.parse_args()
    paths = sorted(given.models.glob("*.safetensors"))
    with Benchmark(given.minutes) as benchmark, benchmark.stage(f"{len(paths)} files of {given.models}"):
        for number, path in enumerate(paths, start=1):
            benchmark.say(f"{path.name}, {number} of {len(paths)}")
            net, header = load_network(path)
            train = header["recipe"]["train"]
            if prunable.layers(net) and KEPT in (train["alone"], *train["capacities"]):
                share, name = share_left(net), method_name(train)
                print(f"{name:<16} seed {train['seed']}  lr {train['lr']:<5g} share left {share:.3f}", flush=True)
            benchmark.found(files=number)


if __name__ == "__main__":
    main()
