"""Who runs a model, when, and at what cost."""
