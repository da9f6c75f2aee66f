"""Prepare shards from moto's S3 server on this machine; used by test_shards.py.

    python s3_shards.py FOLDER

Prints JSON: what `cmpagl prepare shards s3://...` said, at first, again, by a pattern, and for a shard that does not
exist.
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


def prepare(folder: Path, url: str, name: str) -> dict[str, Any]:
    command = ["--workspace", str(folder), "--quiet", "prepare", "shards", url, "--name", name, "--format", "json"]
    done = CliRunner().invoke(app, [*command, "--split", "1,0,0"])
    if done.exit_code:
        return {"code": done.exit_code, "error": done.stderr or str(done.exception)}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(folder: Path) -> dict[str, Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ |= CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}"}
    client = boto3.client("s3")
    client.create_bucket(Bucket="shards")
    for path in sorted(folder.glob("*.tar")):
        client.upload_file(str(path), "shards", path.name)
    braces = "s3://shards/set-{000..001}.tar"
    found = {
        "first": prepare(folder, braces, "first"),
        "again": prepare(folder, braces, "first"),
        "glob": prepare(folder, "s3://shards/set-*.tar", "glob"),
        "missing": prepare(folder, "s3://shards/nothing.tar", "missing"),
    }
    server.stop()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
