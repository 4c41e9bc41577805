"""Embedding in process, each library in a process of its own.

One after another they are told to embed, and answer with the seconds that it took;
``benchmarks.peer_process`` asks them.
"""
