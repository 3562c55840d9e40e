"""Media of a store's clips for training end to end, read from Zarr ahead of the step that needs them.

A media store has a clip a chunk. What memory allows of the clips is kept as it is read, the longest unused goes first.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ...pipeline.errors import InputError
from ...pipeline.stores.catalogue import how_to_make
from ...pipeline.stores.store import MEDIA, FeatureStore

ARRAYS = {"visual": "frames", "audio": "logmel"}  # what a media store holds of a modality
MEMORY_SHARE = 0.4  # of the memory that is free, for clips that are kept
AHEAD = 3  # batches read before they are needed
THREADS = max(2, min(8, (os.cpu_count() or 2) // 2))


class MediaReader:
    """Segments of clips: frames uint8 [n, row, column, 3], log-Mels float16 [n, 3, mel, time], on the host.

    kept: int [clip], places in the store of the clips that rows count. most_bytes: held in memory (default: a share of
    what is free). InputError: no store of media.
    """

    def __init__(self, store: FeatureStore, kept: np.ndarray, most_bytes: int | None = None):
        self.store, self.kept = store, kept
        if store.features != MEDIA:
            raise InputError(
                f"{store.path} holds no media: expected a store of frames and log-Mels to train end to end on.\n"
                f"Make one with `{how_to_make(MEDIA, 'NAME')}`, or leave out --end-to-end to train on features."
            )
        self.names = [ARRAYS[modality] for modality in store.modalities]
        self.segments: int = store.shape(self.names[0])[1]
        self.items = [(store.shape(name)[2:], store.dtype(name)) for name in self.names]  # of a segment
        self.most_bytes = _free_memory() * MEMORY_SHARE if most_bytes is None else most_bytes
        self.pin = False  # memory that a GPU copies from while it computes
        self._clips: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._bytes, self._lock = 0, Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="media")

    def read(self, m: int, rows: Tensor) -> Tensor:
        """Return modality m of rows [n]."""
        clips, segments = divmod(rows.numpy(), self.segments)
        shape, dtype = self.items[m]
        found = np.empty((len(rows), *shape), dtype)
        for clip in np.unique(clips):
            here = np.flatnonzero(clips == clip)
            found[here] = self._clip(m, int(clip))[segments[here]]
        media = torch.from_numpy(found)
        return media.pin_memory() if self.pin else media

    def ahead(self, batches: Sequence[Mapping[int, Tensor]]) -> Iterator[dict[int, Future]]:
        """Yield futures of the media of each batch (rows [n] by modality); they are read ahead in threads."""
        waiting: deque[dict[int, Future]] = deque()
        for rows in batches:
            waiting.append({m: self._pool.submit(self.read, m, some) for m, some in rows.items()})
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _clip(self, m: int, clip: int) -> np.ndarray:
        with self._lock:
            if (m, clip) in self._clips:
                self._clips.move_to_end((m, clip))
                return self._clips[m, clip]
        place = int(self.kept[clip])
        values = self.store.read(self.names[m], slice(place, place + 1))[0]
        with self._lock:
            if (m, clip) not in self._clips:
                self._clips[m, clip] = values
                self._bytes += values.nbytes
                while self._bytes > self.most_bytes and len(self._clips) > 1:
                    self._bytes -= self._clips.popitem(last=False)[1].nbytes
        return values


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
