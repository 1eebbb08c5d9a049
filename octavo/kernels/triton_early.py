"""Launches that begin before the one before them has ended (NVIDIA's programmatic dependent launch, Hopper and later).

A decode step is hundreds of short launches. Each would wait until the last program of the one before is done and its
writes are out, and only then be set up. Launched early, its programs are set up meanwhile and wait in the kernel:

    before `after_previous`   only what no launch of this step writes may be read: weights, lengths, page ids, and pages
                              of the cache before a sequence's first new token. (What another sequence stores in this
                              step is shared as a prefix in later ones only, and a launch without this, as every step
                              has, waits for all before it.)
    after it                  all launches before this one are complete, also those before the previous one, since that
                              one has waited as well; whatever it does then is safe
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["after_previous"]


@triton.jit
def after_previous(EARLY: tl.constexpr):
    """Wait for the launch before, then let the next one be set up. Every program that does anything must come here."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
