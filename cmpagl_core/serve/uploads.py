"""Files that a client sends: few, bounded, told by their first bytes, and gone when the request is answered."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import python_multipart  # noqa: F401  # without it starlette reads no form, and says so only then
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.files import scratch_folder
from cmpagl_core.serve.problems import RequestError

MAX_UPLOAD_BYTES = 32 << 20
_FIELDS = ("image", "inside")
# A VRT, ENVI or NITF file may name others, so those are not taken from a client.
_KINDS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
)


@dataclass(frozen=True)
class Uploads:
    """Files of one request. names: what clients call them, by path."""

    image: Path | None = None
    inside: Path | None = None
    names: tuple[tuple[str, str], ...] = ()

    def renamed(self, error: CmpaglError) -> CmpaglError:
        """An error in which files have the client's names."""
        for path, name in self.names:
            error.message = error.message.replace(path, name)
            error.hint = error.hint and error.hint.replace(Path(path).name, name)
        error.args = (error.message,)
        return error


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Uploads]:
    """The files of a multipart form, in a folder of their own until the end of the block.

    Raises RequestError for another kind of body or a full disk, UsageError for other fields or a file that is no image.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RequestError(415, "the body is not multipart/form-data", hint="send the image as its field `image`")
    with _folder() as folder:
        try:
            async with request.form(max_files=len(_FIELDS), max_fields=0) as form:
                paths: dict[str, Path] = {}
                names: list[tuple[str, str]] = []
                for field, value in form.multi_items():
                    if field not in _FIELDS or field in paths or not isinstance(value, UploadFile):
                        raise UsageError(f"there is no field {field[:100]!r}", hint=f"send {' or '.join(_FIELDS)} once")
                    paths[field] = _written(folder, field, value)
                    names.append((str(paths[field]), (value.filename or field)[:200]))
        except HTTPException as error:
            raise UsageError(f"the form cannot be read ({error.detail})", hint="send multipart/form-data") from error
        except OSError as error:
            raise _no_room(error) from error
        yield Uploads(paths.get("image"), paths.get("inside"), tuple(names))


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for the files, after those that a killed server left are removed."""
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder("serve"))
        except OSError as error:
            raise _no_room(error) from error
        yield folder


def _no_room(error: OSError) -> RequestError:
    return RequestError(507, f"the files cannot be kept ({error.strerror or error})", hint="ask who runs the server")


def _written(folder: Path, field: str, value: UploadFile) -> Path:
    if not value.size:
        raise UsageError(f"the file of {field} is empty", hint="send a file that has something in it")
    if value.size > MAX_UPLOAD_BYTES:
        raise RequestError(413, f"the file has {value.size:,} bytes", hint=f"{MAX_UPLOAD_BYTES >> 20} MiB are taken")
    suffix = ".geojson" if field == "inside" else _suffix(value)
    path = folder / f"uploaded-{field}{suffix}"
    with path.open("wb") as stream:
        shutil.copyfileobj(value.file, stream)
    return path


def _suffix(value: UploadFile) -> str:
    head = value.file.read(16)
    value.file.seek(0)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    for start, suffix in _KINDS:
        if head.startswith(start):
            return suffix
    name = (value.filename or "the file")[:200]
    raise UsageError(f"{name} is no image that can be sent", hint="send JPEG, PNG, TIFF, JPEG 2000, WebP, GIF or BMP")
