"""How many trials run at once is arithmetic, said before anything waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.placement import trials_that_fit
from prunnet.config.recipe import ClusterConfig
from prunnet.errors import ResourceError


def config(**changes: float) -> ClusterConfig:
    return ClusterConfig(**{"workers": 1, "actors": 1, "cpus_per_actor": 1.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cluster", "nodes", "expected"),
    [
        (config(), [{"CPU": 2.0}], 1),
        (config(cpus_per_worker=0.75, cpus_per_actor=0.5), [{"CPU": 2.0}], 2),
        (config(workers=2), [{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 1.0}], 2),
        (config(workers=2, cpus_per_worker=2), [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0}], 1),
        (config(gpus_per_worker=1), [{"CPU": 64.0, "GPU": 4.0}], 4),
        (config(gpus_per_worker=1, gpus_per_actor=0.5, actors=2), [{"CPU": 64.0, "GPU": 4.0}], 3),
        (config(), [{}, {"CPU": 8.0}], 7),
    ],
)
def test_trials_that_fit_beside_the_actors(
    cluster: ClusterConfig, nodes: list[dict[str, float]], expected: int
) -> None:
    assert trials_that_fit(cluster, nodes) == expected
    assert trials_that_fit(cluster, nodes, most=1) == 1


def test_what_cannot_run_is_said_with_the_arithmetic() -> None:
    with pytest.raises(ResourceError) as caught:
        trials_that_fit(config(workers=2), [{"CPU": 2.0}])
    assert "1 actors x 1 + 2 workers x 1 = 3 CPU(s) for one trial, the nodes have 2" in str(caught.value)
    with pytest.raises(ResourceError, match=r"workers x 1 = 1 GPU\(s\)"):
        trials_that_fit(config(gpus_per_worker=1), [{"CPU": 8.0}])


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_never_more_than_the_cpus_there_are(nodes: list[int], workers: int, actors: int) -> None:
    cluster = config(workers=workers, actors=actors)
    try:
        trials = trials_that_fit(cluster, [{"CPU": float(n)} for n in nodes])
    except ResourceError:
        assert sum(nodes) < workers + actors
        return
    assert 1 <= trials <= (sum(nodes) - actors) / workers
