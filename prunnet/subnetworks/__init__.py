"""A capacity made concrete: masks over shared weights, BatchNorm, compact form, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunnet.lazy import loaded_when_used

if TYPE_CHECKING:
    from prunnet.subnetworks.batchnorm import calibration_loader as calibration_loader
    from prunnet.subnetworks.subnet import Subnetwork as Subnetwork
    from prunnet.subnetworks.subnet import subnetwork as subnetwork

__getattr__, __dir__ = loaded_when_used(
    __name__,
    {
        "prunnet.subnetworks.batchnorm": ["calibration_loader"],
        "prunnet.subnetworks.subnet": ["Subnetwork", "subnetwork"],
    },
)
