"""Chunks of a finished store as zarr reads them: never a fill value where a file is gone."""

from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from .errors import InputError
from .places import Place, is_local


class VouchedChunks(WrapperStore):
    """A zarr store whose chunks must be there in their recorded sizes; zarr alone reads an absent one as fill values.

    Bytes are not hashed: that is for `store verify`, and for whoever copies results (donor.py).
    """

    def __init__(self, store: Store, place: Place, files: Mapping[str, Mapping]):
        super().__init__(store)
        self.place, self.files = place, files

    @classmethod
    def at(cls, place: Place, files: Mapping[str, Mapping]) -> "VouchedChunks":
        """``files``: what the store's COMPLETE.json records."""
        if is_local(place):
            return cls(LocalStore(place, read_only=True), place, files)
        remote = FsspecStore.from_url(str(place), storage_options=place.storage_options, read_only=True)
        return cls(remote, place, files)

    def _with_store(self, store: Store) -> "VouchedChunks":
        return type(self)(store, self.place, self.files)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """InputError: a chunk is absent, or of another size than was recorded."""
        found = await super().get(key, prototype, byte_range)
        if "/c/" in key and (found is None or (byte_range is None and len(found) != self._size(key))):
            state = "absent" if found is None else f"{len(found)} bytes, recorded with {self._size(key)}"
            raise InputError(
                f"{self.place}: its file {key} is {state}.\n`mlemiss store verify {self.place}` names all damaged "
                "files; preprocess or copy the store again."
            )
        return found

    def _size(self, key: str) -> int | None:
        return self.files.get(key, {}).get("bytes")
