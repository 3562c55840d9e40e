"""Import once, in the server that worker processes are forked from, what every worker needs, whatever it does.

A worker also runs the module that the command was started from, `cli.py`, but for the command. librosa's own `import`
postpones numba and SciPy.
"""

import gc
import importlib
import signal

NEEDED = ("distributed", "mlemiss.pipeline.commands", "mlemiss.trainer.commands", f"{__package__}.extract")
NEEDED += ("librosa.feature.spectral", "librosa.feature.utils", "librosa.util.utils")

interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the command's to tell, and it ends the server
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked by `start_server`, for as long as Python started
gc.disable()  # it would take a tenth of the time, and find nothing
try:
    for name in NEEDED:
        importlib.import_module(name)
finally:
    gc.freeze()  # workers need not look through it either
    gc.enable()
    signal.signal(signal.SIGINT, interrupted)
