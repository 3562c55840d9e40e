"""What preprocessing costs beside what it could cost: three ratios, each measured within this one run.

    python benchmarks/preprocess.py [DIR] [--features resnet50,resnet34,vgg16] [--clips 48] [--rounds 5]

1. decode: clips per second of the decode stage beside bare `ffmpeg -threads 1 -f null -`, one core, in turns;
2. cnn: images per second of the CNN stage beside the same model run eagerly, on all cores, in turns;
3. neither: the share of a whole `mlemiss preprocess` that is neither decoding nor CNN, start-up included.

DIR holds mp4 files for part 1; without it, clips like those of RAVDESS are made. Part 3 takes synthetic clips. The
parts stand in `preprocess_decode.py`, `preprocess_cnn.py` and `preprocess_overhead.py`. The last line is JSON.
"""

import argparse
import json
import os
from pathlib import Path

import preprocess_cnn
import preprocess_decode
import preprocess_overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, metavar="DIR", help="mp4 files for part 1 (default: made ones)")
    parser.add_argument("--features", default="resnet50,resnet34,vgg16")
    parser.add_argument("--clips", type=int, default=48, help="clips of the whole run of part 3")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    names = arguments.features.split(",")
    decode = preprocess_decode.measure(arguments.root, arguments.rounds)
    cnn = {name: preprocess_cnn.measure(name, arguments.rounds, cores) for name in names}
    neither = preprocess_overhead.measure(names[0], arguments.clips, cores)
    print(json.dumps({"cores": cores, "decode": decode, "cnn": cnn, "neither": neither}))


if __name__ == "__main__":
    main()
