"""Mathematics on numpy arrays; imports nothing else of Pellucid."""
