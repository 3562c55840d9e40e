"""Images per second of the CNN stage beside the same model run eagerly, interleaved in one run, one thread each.

    python benchmarks/cnn.py [--features resnet50,resnet34,timm:mobilenetv3_small_050] [--repeats 5]

The stage is timed whole (resizing and normalising included); the eager model gets ready-made inputs.
"""

import argparse
import json
import platform
import statistics
import time

import numpy as np
import timm
import torch
from mlemiss.pipeline.backbones import Backbone, Weights, resolve_tag, use_one_thread
from mlemiss.pipeline.memory import keep_freed_memory

IMAGES = 30


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(features: str, repeats: int) -> dict:
    frames = np.random.default_rng(0).integers(0, 255, (IMAGES, 256, 256, 3), dtype=np.uint8)
    backbone = Backbone(features, Weights("random"))
    eager = timm.create_model(resolve_tag(features), pretrained=False, num_classes=0).eval()
    inputs = torch.randn(IMAGES, 3, *backbone.spec.input_size)

    def run_eager() -> None:
        with torch.inference_mode():
            eager(inputs)

    for _ in range(2):  # warm up
        backbone.visual(frames)
        run_eager()
    pairs = [(seconds(lambda: backbone.visual(frames)), seconds(run_eager)) for _ in range(repeats)]
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = sorted(slow / fast for fast, slow in pairs)
    print(
        f"{features}: {IMAGES / ours:.1f} images/s, eager {IMAGES / theirs:.1f}; ratio median "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {repeats})"
    )
    return {
        "images_per_s": round(IMAGES / ours, 2),
        "eager_images_per_s": round(IMAGES / theirs, 2),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", default="resnet50,resnet34,vgg16,timm:mobilenetv3_small_050")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    use_one_thread()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, timm {timm.__version__}, 1 thread")
    print(json.dumps({name: compare(name, arguments.repeats) for name in arguments.features.split(",")}))


if __name__ == "__main__":
    main()
