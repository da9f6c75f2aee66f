"""The examples of several machines: their shell and YAML are right, and their commands start what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from cmpagl_cli.app import app

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH = EXAMPLES / "slurm" / "train.sbatch"
SLURM = {
    "SLURM_SUBMIT_DIR": "/shared/workspace",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
}


def dry_run(tmp_path: Path, **environment: str) -> list[str]:
    """The command that the job gives to srun."""
    for name, body in {"scontrol": "echo gpu1; echo gpu2", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {**SLURM, "PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    done = subprocess.run(["bash", str(BATCH)], env=variables, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def assert_starts_training(command: list[str]) -> list[str]:
    """torchrun takes its options, and cmpagl what follows (`--help` instead of training). Returns cmpagl's words."""
    assert command[0] == "torchrun"
    given = get_args_parser().parse_args(command[1:])
    assert (given.module, given.training_script) == (True, "cmpagl_cli")
    words: list[str] = given.training_script_args
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, done.output
    assert "Train a recipe on a prepared data set" in done.output
    return words


def test_the_batch_job_has_valid_syntax() -> None:
    assert BATCH.read_bytes().startswith(b"#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(BATCH)], check=True)
    options = re.findall(r"^#SBATCH (--[a-z-]+)", BATCH.read_text(), re.MULTILINE)
    assert {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--signal", "--requeue"} <= set(options)


def test_the_batch_job_trains_and_resumes_when_it_is_started_again(tmp_path: Path) -> None:
    command = dry_run(tmp_path)
    assert command[1:9] == shlex.split("--nnodes 2 --nproc-per-node 4 --rdzv-id 7 --rdzv-backend c10d")
    assert command[command.index("--rdzv-endpoint") + 1] == "gpu1:29500"
    words = assert_starts_training(command)
    assert words == ["--workspace", "/shared/workspace", "train", "rsicd", "--name", "rsicd-7"]
    (tmp_path / "runs" / "rsicd-7" / "resume").mkdir(parents=True)
    again = assert_starts_training(dry_run(tmp_path, WORKSPACE=str(tmp_path)))
    assert again == ["--workspace", str(tmp_path), "train", "--resume", "--name", "rsicd-7"]


def test_every_command_of_the_page_is_one_that_torchrun_and_cmpagl_take() -> None:
    page = (EXAMPLES / "torchrun.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    for command in commands:
        if command[0] == "torchrun":
            assert_starts_training(command)
        else:
            assert command[0] == "cmpagl"
            assert CliRunner().invoke(app, [*command[1:], "--help"]).exit_code == 0


@pytest.fixture
def ray_job() -> Any:
    return yaml.safe_load((EXAMPLES / "ray-on-kubernetes" / "index.yaml").read_text())


def test_the_ray_job_is_one_for_kuberay(ray_job: Any) -> None:
    schema = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in check.iter_errors(ray_job)] == []
    ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = (
        0  # of which Kubernetes wants text
    )
    assert not check.is_valid(ray_job)


def test_the_ray_job_indexes_with_what_its_pods_have(ray_job: Any) -> None:
    words = shlex.split(ray_job["spec"]["entrypoint"])
    assert words[0] == "cmpagl"
    assert {"index", "--engine", "ray"} <= set(words)
    assert CliRunner().invoke(app, [*words[1:], "--help"]).exit_code == 0
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = [mount for container in pod["containers"] for mount in container["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        assert all(any(word.startswith(mount["mountPath"]) for word in words) for mount in mounts)
    cpus = int(cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert cpus % int(words[words.index("--worker-cpus") + 1]) == 0
