"""Every published system that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.experiments.accelerate.reproduce import ACCELERATE_SYSTEM
from penstock.experiments.adaserve.reproduce import ADASERVE_SYSTEM
from penstock.experiments.alpaserve.reproduce import ALPASERVE_SYSTEM
from penstock.experiments.distserve.reproduce import DISTSERVE_SYSTEM
from penstock.experiments.helix.reproduce import HELIX_SYSTEM
from penstock.experiments.maveriq.reproduce import MAVERIQ_SYSTEM
from penstock.experiments.sds.reproduce import SDS_SYSTEM
from penstock.experiments.system import System
from penstock.experiments.vidur.reproduce import VIDUR_SYSTEM

_EVERY = (
    HELIX_SYSTEM,
    VIDUR_SYSTEM,
    ADASERVE_SYSTEM,
    DISTSERVE_SYSTEM,
    SDS_SYSTEM,
    ALPASERVE_SYSTEM,
    MAVERIQ_SYSTEM,
    ACCELERATE_SYSTEM,
)
SYSTEMS: Mapping[str, System] = {system.name: system for system in _EVERY}
