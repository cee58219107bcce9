"""Uploads of weights. A file is streamed to disk, checked by its header and kept under its
SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool

from service.errors import WeightsError
from service.services import Given
from service.views import weights_view

router = APIRouter(prefix="/v1/weights", tags=["weights"])

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


@router.post("", status_code=201, openapi_extra=_BODY)
async def upload_weights(services: Given, request: Request, response: Response) -> dict[str, Any]:
    """A safetensors file, as the body itself or as the one file of a multipart form."""
    upload = services.blobs.upload(services.settings.max_weights_bytes)
    try:
        feed = _feeder(request.headers.get("content-type", ""), upload.write)
        async for chunk in request.stream():
            await run_in_threadpool(feed, chunk)
        stored, tensors = await run_in_threadpool(upload.finish)
    finally:
        upload.abort()
    weights = await run_in_threadpool(
        services.store.add_weights, stored.sha256, stored.size, stored.path, tensors
    )
    response.headers["Location"] = f"/v1/weights/{weights.id}"
    return weights_view(weights)


@router.get("/{id}")
def get_weights(services: Given, id: str) -> dict[str, Any]:
    """Size and tensors of an upload."""
    weights = services.store.weights(id)
    return weights_view(weights) | {"tensors": weights.tensors}


def _feeder(content_type: str, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """What takes the body's chunks: ``write`` itself, or a parser of a form with one file."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return write
    boundary = options.get(b"boundary")
    if not boundary:
        raise WeightsError("the multipart form has no boundary")
    parts = 0

    def begin() -> None:
        nonlocal parts
        parts += 1
        if parts > 1:
            raise WeightsError("send one file, and nothing else in the form")

    def data(chunk: bytes, start: int, end: int) -> None:
        write(chunk[start:end])

    parser = MultipartParser(boundary, {"on_part_begin": begin, "on_part_data": data})

    def feed(chunk: bytes) -> None:
        try:
            parser.write(chunk)
        except MultipartParseError as error:
            raise WeightsError(f"the multipart form cannot be read: {error}") from error

    return feed
