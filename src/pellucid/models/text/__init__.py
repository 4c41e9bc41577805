"""Text to tokens: what a model reads, and how it is shown."""
