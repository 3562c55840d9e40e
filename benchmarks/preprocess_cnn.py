"""Images per second of the CNN stage beside the same model run eagerly, on all cores, in turns.

Part of `preprocess.py`. The stage runs as `preprocess` runs it: one process a core, one thread each, resizing and
normalising included. The eager model is what a script would do: one process, PyTorch's default threads, float32, the
same batch of 30 images, ready-made inputs. Each is warmed up; a round times both, one after the other.
"""

import multiprocessing
import statistics
import time

import numpy as np

IMAGES = 30  # a batch: one modality of one clip


def serve(features: str, stage: bool, connection) -> None:
    """In a process of its own: build and warm up, then time one batch whenever asked."""
    import timm
    import torch
    from mlemiss.pipeline.encoders import Weights, keep_freed_memory, use_one_thread
    from mlemiss.pipeline.encoders.images import Backbone
    from mlemiss.pipeline.encoders.names import resolve_tag

    if stage:
        keep_freed_memory()
        use_one_thread()
        frames = np.random.default_rng(0).integers(0, 255, (IMAGES, 256, 256, 3), dtype=np.uint8)
        backbone = Backbone(features, Weights("random"))

        def batch() -> None:
            backbone.encode("frames", [frames])
    else:
        model = timm.create_model(resolve_tag(features), pretrained=False, num_classes=0).eval()
        inputs = torch.randn(IMAGES, 3, *timm.data.resolve_model_data_config(model)["input_size"][1:])

        def batch() -> None:
            with torch.inference_mode():
                model(inputs)

    for _ in range(3):
        batch()
    connection.send("ready")
    while (count := connection.recv()) is not None:
        start = time.perf_counter()
        for _ in range(count):
            batch()
        connection.send(count * IMAGES / (time.perf_counter() - start))


def measure(features: str, rounds: int, cores: int) -> dict:
    """Rates and their ratio for one backbone."""
    spawn = multiprocessing.get_context("spawn")
    connections = []
    for stage in [True] * cores + [False]:
        ours, theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(features, stage, theirs), daemon=True).start()
        connections.append(ours)
    for connection in connections:
        connection.recv()
    stages, eager = connections[:-1], connections[-1]
    rates = []
    for _ in range(rounds):
        for connection in stages:
            connection.send(2)
        together = sum(connection.recv() for connection in stages)
        eager.send(2)
        rates.append((together, eager.recv()))
    for connection in connections:
        connection.send(None)
    ratios = sorted(ours / theirs for ours, theirs in rates)
    ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(ratios)
    print(
        f"{features}: {ours:.1f} images/s, eager {theirs:.1f}; ratio median {ratio:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {rounds})",
        flush=True,
    )
    return {"images_per_s": round(ours, 2), "eager_images_per_s": round(theirs, 2), "ratio": round(ratio, 3)}
