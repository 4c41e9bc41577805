"""The documentation as one page, made from the OpenAPI document; it loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from pellucid.api.error_handlers import status_of
from pellucid.errors import PellucidError

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1f24; --soft: #57606a; --line: #d5dae0;
  --paper: #fff; --box: #f4f6f8; --accent: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9aa4af; --line: #353c44;
  --paper: #14181c; --box: #1e242a; --accent: #7cb7ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 58rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
a { color: var(--accent); text-underline-offset: 0.15em; }
h1 { margin: 0; } h1 small { font-size: 1rem; font-weight: normal; color: var(--soft); }
h2 { margin: 3rem 0 0; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
h3 { margin: 0 0 0.3rem; overflow-wrap: anywhere; } h4 { margin: 1rem 0 0.2rem; }
p { margin: 0.4rem 0; } section { padding-top: 2rem; } #errors ~ section { padding-top: 1.2rem; }
.soft, .soft code { color: var(--soft); }
.method { display: inline-block; width: 3.4em; color: var(--accent); }
pre { overflow-x: auto; padding: 0.7rem 0.9rem; border-radius: 6px; background: var(--box); }
code, pre, .method { font-family: ui-monospace, monospace; font-size: 0.9em; }
nav dl { display: grid; grid-template-columns: minmax(max-content, 21rem) 1fr; gap: 0 1.5rem;
  margin: 0; }
nav h3 { margin: 1.5rem 0 0.2rem; font-size: 1rem; }
nav h3::first-letter { text-transform: uppercase; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
dd { margin: 0; } .fields { margin: 0.4rem 0 0; }
.fields > div { display: grid; grid-template-columns: 16rem 1fr; gap: 0 1rem; padding: 0.35rem 0;
  border-top: 1px solid var(--line); font-size: 0.94em; }
.fields dt, .fields dd { overflow-wrap: anywhere; }
@media (max-width: 38rem) { nav dl, .fields > div { grid-template-columns: 1fr; }
  nav dd { margin: 0 0 0.5rem 3.1em; } .fields dd { margin-left: 1rem; } }
"""
_MAX_DEPTH = 3  # objects inside objects whose fields are listed as well


def docs_page(document: Mapping[str, Any], *, base_url: str, needs_token: bool) -> str:
    """The whole page for a server that is reached at ``base_url``."""
    info = document["info"]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
            f"<p>{_marked(info['description'])} For machines: ",
            '<a href="/openapi.json">openapi.json</a>.</p>',
            *_contents(document),
            '<main><h2 id="requests">Requests</h2>',
            *(
                _operation(document, *found, base_url=base_url, needs_token=needs_token)
                for found in _operations(document)
            ),
            '<h2 id="errors">Errors</h2><p>Each is a problem document (RFC 9457): ',
            "<code>code</code> never changes, <code>detail</code> says what happened with its ",
            "numbers, which stand beside it as members; <code>error</code> says the same in ",
            "OpenAI's form.</p>",
            *(_error(kind) for kind in {kind.code: kind for kind in PellucidError.tree()}.values()),
            "</main></body></html>",
        ]
    )


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def _contents(document: Mapping[str, Any]) -> Iterator[str]:
    yield "<nav>"
    by_tag: dict[str, list[str]] = {}
    for method, path, operation in _operations(document):
        by_tag.setdefault(operation["tags"][0], []).append(
            f'<dt><a href="#{operation["operationId"]}"><span class="method">{method}</span> '
            f"<code>{escape(path)}</code></a></dt>"
            f'<dd class="soft">{escape(operation["summary"])}</dd>'
        )
    for tag, rows in by_tag.items():
        yield f"<h3>{escape(tag)}</h3><dl>{''.join(rows)}</dl>"
    yield f'<h3>Errors</h3><p><a href="#errors">All {_num_codes()} codes</a></p></nav>'


def _num_codes() -> int:
    return len({kind.code for kind in PellucidError.tree()})


def _operation(
    document: Mapping[str, Any],
    method: str,
    path: str,
    operation: Mapping[str, Any],
    *,
    base_url: str,
    needs_token: bool,
) -> str:
    schema = _body_schema(document, operation)
    statuses = ", ".join(
        f"{status}" for status in operation["responses"] if not status.startswith("2")
    )
    signs_in = needs_token and bool(operation["security"])
    command = _command(f"{base_url}{path}", method, schema, signs_in=signs_in)
    parts = [
        f'<section id="{operation["operationId"]}"><h3><span class="method">{method}</span> '
        f"<code>{escape(path)}</code></h3>",
        f"<p>{_marked(operation.get('description', operation['summary']))}</p>",
        f"<pre>{escape(command)}</pre>",
    ]
    if schema:
        about = f"<p>{_marked(schema.get('description', ''))}</p>"
        parts += ["<h4>Request</h4>", about, _fields(document, schema, in_answer=False)]
    if answer := _answer_schema(document, operation):
        about = f"<p>{_marked(answer.get('description', ''))}</p>"
        parts += ["<h4>Answer</h4>", about, _fields(document, answer, in_answer=True)]
    if statuses:
        parts.append(
            f'<p class="soft">Other statuses: {statuses}. <a href="#errors">Errors</a></p>'
        )
    return "".join([*parts, "</section>"])


def _body_schema(
    document: Mapping[str, Any], operation: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema")
    return _resolved(document, schema) if schema else None


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _command(address: str, method: str, schema: Mapping[str, Any] | None, *, signs_in: bool) -> str:
    lines = [f"curl -s {'-X POST ' if method == 'POST' and schema is None else ''}{address}"]
    if signs_in:
        lines.append("-H 'Authorization: Bearer TOKEN'")
    if schema is not None:
        lines += ["-H 'Content-Type: application/json'", f"-d '{_example(schema)}'"]
    return " \\\n  ".join(lines)


def _example(schema: Mapping[str, Any]) -> str:
    example = {
        name: field["examples"][0]
        for name, field in schema["properties"].items()
        if "examples" in field
    }
    return json.dumps(example, ensure_ascii=False)


def _answer_schema(
    document: Mapping[str, Any], operation: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    content = operation["responses"]["200"].get("content", {})
    schema = _resolved(document, content.get("application/json", {}).get("schema", {}))
    return schema if "properties" in schema else None


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any], *, in_answer: bool) -> str:
    rows = _rows(document, schema, in_answer=in_answer)
    return f'<dl class="fields">{"".join(rows)}</dl>'


def _rows(
    document: Mapping[str, Any], schema: Mapping[str, Any], *, in_answer: bool, path: str = ""
) -> Iterator[str]:
    """A row per field, and below each object that it holds a row per field of that."""
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        notes = [_type(document, field)]
        if not in_answer and name in required:
            notes.append("needed")
        if not in_answer and field.get("default") is not None:
            notes.append(f"default {json.dumps(field['default'])}")
        yield (
            f'<div><dt><code><span class="soft">{escape(path)}</span>{escape(name)}</code></dt>'
            f'<dd><div class="soft">{escape(", ".join(notes))}</div>'
            f"{_marked(field.get('description', ''))}</dd></div>"
        )
        inner, suffix = _object_in(document, field)
        if inner is not None and path.count(".") + 1 < _MAX_DEPTH:
            yield from _rows(document, inner, in_answer=in_answer, path=f"{path}{name}{suffix}.")


def _object_in(
    document: Mapping[str, Any], field: Mapping[str, Any]
) -> tuple[Mapping[str, Any] | None, str]:
    """The object with known fields that a field holds, alone, in a list (``[]``) or by name."""
    for choice in field.get("anyOf", [field]):
        resolved = _resolved(document, choice)
        if "properties" in resolved:
            return resolved, ""
        for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
            item = resolved.get(key)
            if isinstance(item, Mapping) and "properties" in _resolved(document, item):
                return _resolved(document, item), suffix
    return None, ""


def _type(document: Mapping[str, Any], field: Mapping[str, Any]) -> str:
    """A schema as a person writes it: ``"pca" | "umap"``, ``[integer]``, ``integer | null``."""
    if "$ref" in field:
        resolved = _resolved(document, field)
        return "object" if "properties" in resolved else _type(document, resolved)
    if "enum" in field or "const" in field:
        values = field.get("enum") or [field["const"]]
        return " | ".join(json.dumps(value) for value in values)
    if "anyOf" in field:
        return " | ".join(_type(document, choice) for choice in field["anyOf"])
    if field.get("type") == "array":
        return f"[{_type(document, field.get('items', {}))}]"
    return str(field.get("type", "any"))


def _error(kind: type[PellucidError]) -> str:
    return (
        f'<section id="{kind.code}"><h3><code>{kind.code}</code> '
        f'<span class="soft">{status_of(kind)}</span></h3>'
        f"<p>{escape(kind.title)}.</p>"
        f'<p class="soft">{_marked(f"{kind.template} {kind.way_out}")}</p></section>'
    )


def _marked(text: str) -> str:
    """Text as HTML; what stands between backquotes becomes code."""
    pieces = escape(text, quote=False).split("`")
    if len(pieces) % 2 == 0:
        return "`".join(pieces)
    return "".join(
        f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces)
    )
