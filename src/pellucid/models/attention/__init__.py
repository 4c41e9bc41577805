"""Attention out of a forward pass: the registered function, where it is called, the proof."""
