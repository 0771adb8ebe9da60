"""The client: kernels, futures, channels, and what feeds servers with signed batches."""
