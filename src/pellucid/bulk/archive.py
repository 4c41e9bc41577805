"""A whole journal as one ``.npz``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import orjson


def write_npz(journal_path: Path, npz_path: Path, *, model_id: str, revision: str) -> int:
    """Arrays ``embeddings`` float32 [n, dimensions], ``index`` and ``line`` int64 [n], ``source``,
    ``truncated`` bool [n], ``model_id``, ``revision``. Returns n.

    JSON's decimals are the shortest that read back as the same float32, so nothing is lost.
    """
    embeddings, index, line, file, truncated = [], [], [], [], []
    with journal_path.open("rb") as records:
        for record in map(orjson.loads, records):
            embeddings.append(np.asarray(record["embedding"], dtype=np.float32))
            index.append(record["index"])
            line.append(record["line"])
            file.append(record["file"])
            truncated.append(record["truncated"])
    aside = npz_path.with_name(npz_path.name + ".new")
    with aside.open("wb") as content:
        np.savez(
            content,
            embeddings=np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            index=np.asarray(index, dtype=np.int64),
            line=np.asarray(line, dtype=np.int64),
            source=np.asarray(file, dtype=np.str_),
            truncated=np.asarray(truncated, dtype=np.bool_),
            model_id=np.asarray(model_id),
            revision=np.asarray(revision),
        )
    os.replace(aside, npz_path)
    return len(index)
