"""Index images from moto's S3 server on this machine; used by test_fetch.py.

    python s3_images.py FOLDER RUN BBOX

Prints JSON: what `cmpagl index s3://...` said of a bucket's prefix, of it again, of the part in a box, and of a bucket
that does not exist.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from cmpagl_cli.app import app

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def index(folder: Path, run: str, *arguments: str) -> dict[str, Any]:
    command = ["--workspace", str(folder), "--quiet", "index", *arguments, "--run", run, "--format", "json"]
    done = CliRunner().invoke(app, command)
    if done.exit_code:
        return {"code": done.exit_code, "error": done.stderr or str(done.exception)}
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def main(folder: Path, run: str, box: str) -> dict[str, Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}"}
    client = boto3.client("s3")
    client.create_bucket(Bucket="images")
    for path in sorted(folder.glob("*.*")):
        client.upload_file(str(path), "images", f"2024/{path.name}")
    found = {
        "first": index(folder / "workspace", run, "s3://images/2024/", "--name", "whole"),
        "again": index(folder / "workspace", run, "s3://images/2024/", "--name", "whole"),
        "part": index(folder / "workspace", run, "s3://images/2024/*.tif", "--name", "part", "--bbox", box),
        "missing": index(folder / "workspace", run, "s3://nothing/", "--name", "missing"),
    }
    server.stop()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
