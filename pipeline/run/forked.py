"""Import once, in the server that worker processes are forked from, what every worker needs, whatever it does.

A worker also runs the module that the command was started from, `cli.py`, but for the command. librosa's own `import`
postpones numba and SciPy.
"""

import gc
import importlib
import os
import signal

from .forking import silence_dask

NEEDED = ("distributed", "mlemiss.pipeline.commands", "mlemiss.trainer.commands", f"{__package__}.extract")
NEEDED += ("librosa.feature.spectral", "librosa.feature.utils", "librosa.util.utils")

# Ctrl-C is the command's to tell. It ends this process, at once: the command waits for no import.
interrupted = signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
signal.pthread_sigmask(signal.SIG_SETMASK, ())  # `start_server` blocked what may come while Python starts
gc.disable()  # it would take a tenth of the time, and find nothing
try:
    for name in NEEDED:
        importlib.import_module(name)
    silence_dask()  # for as long as any worker lives
finally:
    gc.freeze()  # workers need not look through it either
    gc.enable()
    signal.signal(signal.SIGINT, interrupted)
