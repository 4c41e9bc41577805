"""What a transformer can tell us: finding, loading and running models."""
