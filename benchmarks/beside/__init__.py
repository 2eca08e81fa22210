"""What the benchmarks share: the envelope of a result, turns, ours and the peers as contenders."""
