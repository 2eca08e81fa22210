"""What the benchmarks that train beside a peer share."""
