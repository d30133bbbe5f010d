"""Advantages from the rewards of a group: what a response gained over its siblings."""

import numpy as np
import numpy.typing as npt

STD_EPSILON = 1e-4  # as simple_GRPO and TRL
NEGLIGIBLE = 1e-6  # smaller advantages teach nothing and need no forward pass

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def group_advantages(rewards: Floats, counted: Bools, *, normalize_std: bool = False) -> Floats:
    """r - mean(r) over the counted responses of one group, [k]; others get 0.

    normalize_std divides by the group's standard deviation (GRPO, Shao et al. 2024, section 4.1.2); without it
    the result is that of k1.5 (section 2.3.2) and Dr. GRPO (Liu et al. 2025). A response that is not counted
    (`truncated: mask`) takes no part in the baseline either.
    """
    result = np.zeros(len(rewards), dtype=np.float64)
    if not counted.any():
        return result
    kept = rewards[counted]
    centred = kept - kept.mean()
    if normalize_std:
        centred = centred / (np.sqrt((centred**2).mean()) + STD_EPSILON)
    result[counted] = centred
    return result
