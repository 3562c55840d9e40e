"""What the server that commands are forked from imports, and does once: what every command does when it starts."""

import contextlib
import io

import distributed  # noqa: F401
import librosa.feature.spectral
import librosa.feature.utils  # noqa: F401
import timm  # noqa: F401
from mlemiss import cli
from mlemiss.pipeline import preprocess  # noqa: F401
from mlemiss.trainer.experiments import reproduce  # noqa: F401

from . import processes  # noqa: F401

for arguments in (["list", "datasets"], ["list", "nothing"], ["train", "--help"]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        cli.main(arguments)
