"""The API's description in OpenAPI 3.1, made from the same table that requests are read with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cmpagl_core import __version__
from cmpagl_core.serve.evaluation_api import PARAMETERS as EVALUATION
from cmpagl_core.serve.exports import MAX_HITS, MEDIA_TYPES
from cmpagl_core.serve.parameters import PARAMETERS, Parameter
from cmpagl_core.serve.problems import PROBLEM

_TYPES = {"text": "string", "int": "integer", "number": "number", "bool": "boolean"}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_NULL = {"type": "null"}
_ITEM = {
    "image_id": {"type": "string"},
    "path": {"type": "string"},
    "captions": {"type": "array", "items": {"type": "string"}},
    "window": {"type": "array", "items": {"type": "integer"}, "description": "left, top, width, height in pixels"},
    "bounds": {"anyOf": [_NUMBERS, _NULL], "description": "left, bottom, right, top in crs"},
    "bounds_from": {"type": "string"},
    "crs": {"type": ["string", "null"]},
    "date": {"type": ["string", "null"]},
    "row": {"type": "integer"},
    "thumbnail": {"type": "string"},
    "footprint": {"type": ["object", "null"], "description": "GeoJSON geometry in longitude and latitude"},
    "scene_size": {"type": "array", "items": {"type": "integer"}},
}
_HIT = {**_ITEM, "rank": {"type": "integer"}, "score": {"type": "number"}}
_SCHEMAS: Mapping[str, Any] = {
    "Hit": {"type": "object", "required": ["rank", "image_id", "path", "score", "captions"], "properties": _HIT},
    "Item": {"type": "object", "required": ["image_id", "path", "captions", "row"], "properties": _ITEM},
    "Answer": {
        "type": "object",
        "required": ["hits", "total", "took_ms"],
        "properties": {
            "hits": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
            "total": {"type": "integer", "description": "images that are hits"},
            "reachable": {"type": "integer", "description": "those that k and offset can reach"},
            "took_ms": {"type": "number"},
            "notes": {"type": "array", "items": {"type": "string"}},
        },
    },
    "Index": {
        "type": "object",
        "required": ["name", "images", "captions", "open"],
        "properties": {
            "name": {"type": "string"},
            "images": {"type": "integer"},
            "captions": {"type": "integer"},
            "open": {"type": "boolean", "description": "whether it is the one that is searched"},
        },
    },
    "Problem": {
        "type": "object",
        "required": ["title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "the command line's sentence"},
            "hint": {"type": "string", "description": "its second half: what to do"},
        },
    },
}
_UPLOAD = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary", "description": "query image"},
        "inside": {"type": "string", "format": "binary", "description": "GeoJSON of polygons that hits intersect"},
    },
}
_EXPORT = {
    "type": "object",
    "required": ["format", "hits"],
    "properties": {
        "format": {"enum": ["paths", "csv", "geojson", "gpkg", "zip"]},
        "hits": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_HITS,
            "items": {
                "type": "object",
                "required": ["row", "score"],
                "properties": {"row": {"type": "integer", "minimum": 0}, "score": {"type": "number"}},
            },
        },
    },
}
SIZE = Parameter("size", "int", "Pixels of the longer side.", {"minimum": 16, "maximum": 2048})
AROUND = Parameter(
    "around", "int", "How many times as much of the scene is shown as the tile; 0: all of it.",
    {"minimum": 0, "maximum": 64},
)  # fmt: skip
EXPLAIN = (Parameter("q", "text", "The text."), Parameter("id", "text", "Id of the image, or its row."))


def description() -> dict[str, Any]:
    """The whole description."""
    search = _operation("Find images by text or by an image of the index.", "Answer", PARAMETERS)
    post = _operation("Find images like one that is sent, or inside polygons.", "Answer", PARAMETERS)
    post["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    export = _operation("Chosen hits as a file; crops of 200 at most.", "file")
    export["requestBody"] = {"required": True, "content": {"application/json": {"schema": _EXPORT}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "cmpagl serve", "version": __version__, "description": "Read-only. Scores are cosines."},
        "paths": {
            "/api/search": {"get": search, "post": post},
            "/api/items/{id}": {"get": _operation("An image of the index.", "Item", (), of_item=True)},
            "/api/thumbnails/{id}": {
                "get": _operation("Its JPEG, small.", "image/jpeg", (SIZE, AROUND), of_item=True),
            },
            "/api/export": {"post": export},
            "/api/explain": {"get": _operation("Which regions of an image speak for a text.", None, EXPLAIN, need=2)},
            "/api/evaluation": {"get": _operation("Recalls of the index's own captions.", None, EVALUATION)},
            "/api/indexes": {"get": _operation("The workspace's indexes.", ["Index"])},
            "/api/openapi.json": {"get": _operation("This description.", None)},
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(
    summary: str,
    answer: str | list[str] | None,
    parameters: Sequence[Parameter] = (),
    of_item: bool = False,
    need: int = 0,
) -> dict[str, Any]:
    path = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    return {
        "summary": summary,
        "parameters": [
            *([path] if of_item else []),
            *(_parameter(parameter, number < need) for number, parameter in enumerate(parameters)),
        ],
        "responses": {
            "200": {"description": "done", "content": _content(answer)},
            "default": {
                "description": "refused, with the reason",
                "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }


def _parameter(parameter: Parameter, required: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _TYPES[parameter.kind], **parameter.limits}
    if parameter.many:
        schema = {"type": "array", "items": schema, "maxItems": 16}
    return {
        "name": parameter.name,
        "in": "query",
        "required": required,
        "description": parameter.about,
        "schema": schema,
    }


def _content(answer: str | list[str] | None) -> dict[str, Any]:
    if answer == "image/jpeg":
        return {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    if answer == "file":
        return {media_type: {} for media_type in MEDIA_TYPES.values()}
    schema: dict[str, Any] = {"type": "object"}
    if isinstance(answer, list):
        schema = {"type": "array", "items": {"$ref": f"#/components/schemas/{answer[0]}"}}
    elif answer is not None:
        schema = {"$ref": f"#/components/schemas/{answer}"}
    return {"application/json": {"schema": schema}}
