"""A tiny deterministic transformer in numpy: everything that a backend does, without torch."""
