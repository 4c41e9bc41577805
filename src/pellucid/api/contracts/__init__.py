"""The root-level contracts of earlier systems, as thin adapters onto the same services."""
