"""What can be wrong with an HTTP message itself, before its meaning is looked at."""

from __future__ import annotations

from pellucid.errors import CapabilityMissing, InvalidInput, Refused


class MalformedJson(InvalidInput):
    code = "malformed_json"
    title = "The body is not JSON"
    template = "The body is not JSON: {reason}, at character {position}."
    way_out = "Send one JSON object in UTF-8."


class JsonTooComplex(InvalidInput):
    code = "json_too_complex"
    title = "The JSON is nested too deep or holds too many parts"
    template = "The body {problem}, the limit is {limit}."
    way_out = "No request needs this; see /docs for the form of every request."


class BodyTooLarge(InvalidInput):
    code = "body_too_large"
    title = "The body is too large"
    template = "The body has more than {limit_bytes} (`max_body_bytes`)."
    way_out = "Send it in several requests."


class UnsupportedMediaType(InvalidInput):
    code = "unsupported_media_type"
    title = "The body is of another kind than JSON"
    template = "The body was sent as {content_type}."
    way_out = "Send JSON with `Content-Type: application/json`."


class UnsupportedEncoding(UnsupportedMediaType):
    code = "unsupported_encoding"
    title = "The body is compressed"
    template = "The body was sent with `Content-Encoding: {content_encoding}`."
    way_out = "Send it as it is, without compression."


class NotAcceptable(InvalidInput):
    code = "not_acceptable"
    title = "The answer cannot be given in that form"
    template = "`Accept: {accept}` allows none of: {available}."
    way_out = "Leave `Accept` out for JSON."


class RouteNotFound(InvalidInput):
    code = "route_not_found"
    title = "No such address"
    template = "There is nothing at {path}."
    way_out = "GET /docs lists every address."


class MethodNotAllowed(InvalidInput):
    code = "method_not_allowed"
    title = "The address does not know this method"
    template = "{path} does not take {method}."
    way_out = "The `Allow` header names the methods it takes."


class HostNotAllowed(Refused):
    code = "host_not_allowed"
    title = "Asked under a foreign name"
    template = "This server answers to {known}, it was asked as {host!r}."
    way_out = "Ask it as localhost, or set `auth_token` to open it to other names."


class StoreUnavailable(CapabilityMissing):
    code = "store_unavailable"
    title = "Inspections are not kept"
    template = "This server does not keep inspections."
    way_out = "Leave `store` out, or send false."


class TooManyConnections(Refused):
    code = "too_many_connections"
    title = "Too many connections"
    template = "The server holds as many connections as it may, {max_connections}."
    way_out = "Ask again in {retry_after_s} s, with fewer connections at once."
