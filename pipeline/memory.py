"""Keep freed memory for the next layer instead of handing it back to the system each time."""

import ctypes
import sys

# mallopt's parameters, from malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Tell glibc to reuse large blocks. A CNN's activations are tens of megabytes each: mapped anew for every layer,
    their page faults cost a tenth to a third of its time (benchmarks/preprocess.py). Elsewhere than on glibc: nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26), (_ARENA_MAX, 1)):
        mallopt(parameter, value)
