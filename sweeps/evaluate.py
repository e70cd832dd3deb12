"""Compares two networks or subnetworks: self-tests, cross-test, negative flips, upgrade metrics.

    prunnet evaluate --query NEW --gallery OLD
    prunnet evaluate --query NEW --gallery OLD --independent NEW_STAR --query-capacity 0.2

Each is a network's file (model.safetensors of a run) or a saved subnetwork. Tested on the query network's data, on
those of --recipe, or on another benchmark: --set sweep.dataset=roxford5k --set sweep.root=DIR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from prunnet.config.recipe import Recipe, absolute_paths, load_recipe
from prunnet.evaluation.compare import Comparison, Side, compare, data_of
from sweeps.printing import Console, print_json
from sweeps.terminal_table import print_table


def evaluate(
    networks: Mapping[str, tuple[Path, float | None]],
    independent: Path | None,
    *,
    recipe: Path | None,
    overrides: list[str],
    split: str,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Tests `query` and `gallery`, each a file and the capacity to cut, against each other, and prints what is found.

    Args:
        independent: a network that was trained without regard to the gallery's.
        recipe, overrides, split: see `tested_on`.
    """
    sides = {name: Side.load(path, capacity) for name, (path, capacity) in networks.items()}
    third = Side.load(independent) if independent else None
    tested = tested_on(sides["query"], recipe, overrides, split)
    found = compare(sides["query"], sides["gallery"], third, recipe=tested, calibrate=calibrate)
    if as_json:
        print_json(asdict(found))
    else:
        show(found, {**sides, **({"independent": third} if third else {})}, Console())


def tested_on(query: Side, recipe: Path | None, overrides: list[str], split: str) -> Recipe:
    """The recipe's data, or the query network's; `overrides` change either, and may name another set to test on."""
    given = absolute_paths(load_recipe(recipe, overrides))
    sweep = given.sweep.model_copy(update={"split": split})
    if recipe is not None:
        return given.model_copy(update={"sweep": sweep})
    said = {o.partition("=")[0].strip().removeprefix("data.") for o in overrides}
    changed = {key: value for key, value in given.data.model_dump().items() if key in said}
    return given.model_copy(update={"data": data_of(query, changed), "sweep": sweep})


def show(found: Comparison, sides: dict[str, Side], console: Console) -> None:
    """Prints the tests as a table, then negative flips and upgrade metrics."""
    head = ("test", "queries by", "gallery by", "mAP", "R@1", "R@5", "R@10")
    lines = []
    every = [("", found.tests), *((f", {name}", tests) for name, tests in found.reranked.items())]
    for suffix, name, metrics in ((suffix, *test) for suffix, tests in every for test in tests.items()):
        by = ("query", "gallery") if name == "cross" else (name, name)
        values = (f"{100 * metrics[key]:.2f}" for key in ("map", "recall_at_1", "recall_at_5", "recall_at_10"))
        test = ("cross-test" if name == "cross" else "self-test") + suffix
        lines.append((test, *(_named(sides[side]) for side in by), *values))
    print_table(console, head, lines, drop=("R@10", "R@5", "R@1"), names=head[1:3])
    console.print(
        f"negative flips (right in the gallery's self-test, wrong now): {found.flips['cross']:.2%} in the cross-test, "
        f"{found.flips['query']:.2%} in the query's self-test",
    )
    console.print("  ".join(f"{k} {'null' if v is None else f'{v:.4f}'}" for k, v in found.upgrade.items()))
    for line in filter(None, (found.reason, *found.notes)):
        console.print(f"note: {line}")


def _named(side: Side) -> str:
    return f"{Path(side.path).parent.name}/{Path(side.path).name} @ {side.cut.capacity:g}"
