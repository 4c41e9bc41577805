"""What clients of an embedding server send, all mixed; every answer is compared with what the same
server said to the same text alone, beforehand."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import safetensors.numpy
from numpy.typing import NDArray

from benchmarks.http_client import Connection, Reply, get, post
from benchmarks.load_generator import Exchange, Kind

EMBEDDINGS = "/v1/embeddings"
MIN_COSINE = 0.9999  # to the vector of the same text, embedded alone
_SAFETENSORS = "application/vnd.safetensors"
_ATTENTION_STEPS = 2  # of 255: the same text in another batch rounds to the next step


@dataclass(frozen=True, slots=True)
class KnownText:
    text: str
    vector: NDArray[np.float32]  # [dimensions], length 1
    num_tokens: int


def embed_alone(port: int, texts: Sequence[str]) -> list[KnownText]:
    """Each text's vector, one request at a time.

    Raises RuntimeError if two texts are so alike that their vectors could be mixed up unseen.
    """
    known = []
    with Connection(port) as connection:
        for text in texts:
            reply = connection.exchange(post(EMBEDDINGS, {"input": text}))
            if reply.status != 200:
                raise RuntimeError(f"status {reply.status}: {reply.body[:300]!r}")
            answer = orjson.loads(reply.body)
            vector = np.array(answer["data"][0]["embedding"], dtype=np.float32)
            known.append(KnownText(text, vector, answer["usage"]["prompt_tokens"]))
    vectors = np.stack([each.vector for each in known])
    closest = float((vectors @ vectors.T - 2 * np.eye(len(known))).max())
    if closest >= MIN_COSINE - 1e-4:
        raise RuntimeError(f"two of the texts have vectors of cosine {closest:.5f}")
    return known


def mixed_traffic(port: int, known: Sequence[KnownText], *, inspections: bool) -> list[Kind]:
    """All kinds of requests over the ``known`` texts, the last of them the longest."""
    by_length = sorted(known, key=lambda each: each.num_tokens)
    short, long = by_length[: len(known) // 2], by_length[len(known) // 2 :]
    kinds = [
        Kind("one short text", 45, [_embeddings([each]) for each in short]),
        Kind("one long text", 10, [_embeddings([each]) for each in long]),
        Kind("4 texts, base64", 15, [_embeddings(part, as_text=True) for part in _parts(known, 4)]),
        Kind("32 texts", 5, [_embeddings(part) for part in _parts(known, 32)]),
        Kind("/embed, 2 texts", 12, [_embed(part) for part in _parts(known, 2)]),
        Kind("not a request", 4, [_invalid({"input": []}), _invalid({"inputs": "no such field"})]),
        Kind("/health", 3, [Exchange(get("/health"), _expect_200)]),
        Kind("/metrics", 1, [Exchange(get("/metrics"), _expect_200)]),
        Kind("gone at once", 4, [_embeddings(part) for part in _parts(known, 16)], leaves=True),
    ]
    if inspections:
        kinds.append(Kind("inspection", 1, [_inspection(port, each.text) for each in short[:8]]))
    return kinds


def _parts(known: Sequence[KnownText], size: int) -> list[Sequence[KnownText]]:
    starts = range(0, len(known) - size + 1, size)
    return [known[start : start + size] for start in starts]


def _embeddings(part: Sequence[KnownText], *, as_text: bool = False) -> Exchange:
    body: dict[str, object] = {"input": [each.text for each in part]}
    if as_text:
        body["encoding_format"] = "base64"

    def vectors(answer: dict[str, Any]) -> NDArray[np.float32]:
        given = sorted(answer["data"], key=lambda item: item["index"])
        if not as_text:
            return np.array([item["embedding"] for item in given], dtype=np.float32)
        pieces = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in given]
        return np.stack(pieces)

    def complaint(answer: dict[str, Any]) -> str | None:
        if (read := answer["usage"]["prompt_tokens"]) != sum(each.num_tokens for each in part):
            return f"{read} tokens are not those of these texts"
        return _complaint_about(vectors(answer), part)

    return Exchange(post(EMBEDDINGS, body), _checked(complaint))


def _embed(part: Sequence[KnownText]) -> Exchange:
    def complaint(answer: dict[str, Any]) -> str | None:
        return _complaint_about(np.array(answer["vectors"], dtype=np.float32), part)

    return Exchange(post("/embed", {"texts": [each.text for each in part]}), _checked(complaint))


def _complaint_about(vectors: NDArray[np.float32], part: Sequence[KnownText]) -> str | None:
    expected = np.stack([each.vector for each in part])
    if vectors.shape != expected.shape:
        return f"vectors of shape {vectors.shape} instead of {expected.shape}"
    cosines = np.einsum("nd,nd->n", vectors, expected)
    if not (cosines >= MIN_COSINE).all():  # also of NaN
        return f"cosine {cosines.min():.5f} to the vector of the same text alone"
    return None


def _inspection(port: int, text: str) -> Exchange:
    body = {"text": text, "include": ["attentions"], "dtype": "uint8"}
    request = post("/v1/inspections", body, accept=_SAFETENSORS)
    with Connection(port) as connection:
        alone = connection.exchange(request)
    if alone.status != 200:
        raise RuntimeError(f"status {alone.status}: {alone.body[:300]!r}")
    expected = safetensors.numpy.load(alone.body)["attentions"].astype(np.int16)

    def complaint(reply: Reply) -> str | None:
        if reply.status != 200:
            return f"status {reply.status}: {reply.body[:200]!r}"
        attentions = safetensors.numpy.load(reply.body)["attentions"].astype(np.int16)
        if attentions.shape != expected.shape:
            return f"attention of shape {attentions.shape} instead of {expected.shape}"
        if (difference := int(np.abs(attentions - expected).max())) > _ATTENTION_STEPS:
            return f"attention differs by {difference} of 255"
        return None

    return Exchange(request, complaint)


def _invalid(body: dict[str, object]) -> Exchange:
    def complaint(reply: Reply) -> str | None:
        return None if reply.status == 422 else f"status {reply.status} instead of 422"

    return Exchange(post(EMBEDDINGS, body), complaint)


def _checked(complaint: Callable[[dict[str, Any]], str | None]) -> Callable[[Reply], str | None]:
    def check(reply: Reply) -> str | None:
        if reply.status != 200:
            return f"status {reply.status}: {reply.body[:200]!r}"
        try:
            return complaint(orjson.loads(reply.body))
        except (ValueError, LookupError, TypeError) as error:
            return f"an answer of another form: {error!r}"

    return check


def _expect_200(reply: Reply) -> str | None:
    return None if reply.status == 200 else f"status {reply.status} instead of 200"
