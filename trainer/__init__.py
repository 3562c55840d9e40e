"""Training and evaluation over cached features; never imports Dask or ffmpeg."""
