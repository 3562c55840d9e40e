"""From raw clips to cached features: manifest, decoding, CNN features, masks, Zarr stores."""
