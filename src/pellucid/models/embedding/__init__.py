"""Hidden states to one vector, as the repository says."""
