"""The files for clusters agree with the programs that they start, with other files and settings."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deepspeed.launcher.runner import fetch_hostfile
from deepspeed.launcher.runner import parse_args as parse_deepspeed
from packaging.requirements import Requirement

from pipeline import train, tune
from pipeline.config import Config, load_config
from pipeline.sweep.config import load_sweep
from tests.chaos.comparison import RunContent, read_run
from tests.launches import PORT, RANK, ROOT, TRAIN, TinyRun
from tests.services.nodes import Nodes, wait_until

CLUSTER = ROOT / "cluster"
FILES = sorted(file for file in CLUSTER.rglob("*") if file.is_file())
SCRIPTS = [file for file in FILES if file.suffix in (".sh", ".sbatch")]
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
MAX_LINES = 80


def named(file: Path) -> str:
    """The name of a file in tests and messages."""
    return str(file.relative_to(CLUSTER))


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The objects of a Kubernetes file, by kind."""
    text = (CLUSTER / "kubernetes" / f"{name}.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def pods(tree: Any) -> list[dict[str, Any]]:
    """All specifications of pods in a document."""
    if isinstance(tree, dict):
        own = [tree] if "containers" in tree else []
        return own + [pod for value in tree.values() for pod in pods(value)]
    return [pod for value in tree for pod in pods(value)] if isinstance(tree, list) else []


def instructions(name: str) -> list[str]:
    """The arguments of all instructions ``name`` of the Dockerfile, in order."""
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^{name} (.*)", text, re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_file_is_short_and_says_how_to_run_it(file):
    text = file.read_text()
    if file.name != "setup.sh":  # it has --help
        assert len(text.splitlines()) <= MAX_LINES
        assert text.startswith("#") and re.search("run", text, re.IGNORECASE)
    assert max(map(len, text.splitlines())) <= 100 or file.suffix == ".md"


@pytest.mark.parametrize("file", SCRIPTS, ids=named)
def test_bash_can_parse_the_script(file):
    checked = subprocess.run(["bash", "-n", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_scripts():
    checked = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_named_files_exist():
    missing = [
        f"{named(file)}: {path}"
        for file in FILES
        for path in re.findall(r"\b(?:configs|cluster|pipeline)/[\w/.-]*\w", file.read_text())
        if not (ROOT / path).exists() and "NAME" not in path
    ]
    assert missing == []


def test_guide_names_every_file_and_only_existing_settings():
    guide = (CLUSTER / "README.md").read_text()
    aside = {"README.md", "Dockerfile.dockerignore", "kubernetes/stop.sh"}
    assert [named(file) for file in FILES if named(file) not in aside | {*guide.split("`")}] == []
    for section, key in re.findall(r"`([a-z]+)\.([a-z_.]+)`", guide):
        if section in Config.model_fields:
            kind = Config.model_fields[section].annotation
            for name in key.split("."):
                assert name in kind.model_fields, f"{section}.{key}"
                kind = kind.model_fields[name].annotation


def test_training_pods_run_a_command_that_can_be_parsed():
    """must hold for the parsers of DeepSpeed, of the command and of the configuration"""
    (container,) = documents("train")["Job"]["spec"]["template"]["spec"]["containers"]
    program, *words = container["command"] + container["args"]
    assert program == "deepspeed"
    node = [word.replace("$(NODE)", "1") for word in words]
    launch = parse_deepspeed(node)
    assert (launch.node_rank, launch.no_ssh, launch.user_script) == (1, True, "pipeline/train.py")
    options = train.parse_arguments(launch.user_args)
    assert load_config(ROOT / options.config, options.overrides).output.startswith("s3://")


def test_training_pods_are_the_nodes_of_their_hostfile(tmp_path):
    found = documents("train")
    job, hosts = found["Job"]["spec"], tmp_path / "hostfile"
    hosts.write_text(found["ConfigMap"]["data"]["hostfile"])
    slots = fetch_hostfile(str(hosts))
    pod = job["template"]["spec"]
    name, subdomain = found["Job"]["metadata"]["name"], pod["subdomain"]
    assert list(slots) == [f"{name}-{index}.{subdomain}" for index in range(job["completions"])]
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert found["Service"]["metadata"]["name"] == subdomain
    assert found["Service"]["spec"]["selector"] == {"job-name": name}
    (container,) = pod["containers"]
    assert set(slots.values()) == {container["resources"]["limits"]["nvidia.com/gpu"]}
    assert f"--master_addr={next(iter(slots))}" in container["args"]


def test_training_pods_restart_after_a_stop_and_not_after_an_error_of_the_user():
    spec = documents("train")["Job"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy requires it
    actions = {
        status: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for status in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {75: "Ignore", 2: "FailJob"}


def test_sweep_of_kubernetes_runs_a_command_that_can_be_parsed():
    python, flag, module, *words = shlex.split(documents("sweep")["RayJob"]["spec"]["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "pipeline.tune")
    options = tune.parse_arguments(words)
    assert options.resume
    sweep = load_sweep(ROOT / options.config, options.overrides)
    assert sweep.address == "auto" and sweep.output.startswith("s3://")


@pytest.mark.parametrize("version", ["1.30.0", kubernetes_validate.latest_version()])
def test_kubernetes_knows_every_field(version):
    """must include the pods of a RayJob; the schema of the RayJob belongs to KubeRay"""
    objects = list(documents("train").values())
    for spec in pods(documents("sweep")):
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec})
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=named)
def test_pods_contain_no_secret_run_without_root_and_have_their_volumes(file):
    user = int(re.search(r"--uid (\d+)", " ".join(instructions("RUN")))[1])
    found = pods(list(yaml.safe_load_all(file.read_text())))
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == user
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert "/home/tppt/.cache" in mounts
        assert container["envFrom"] == [{"secretRef": {"name": "tppt-storage"}}]
        assert all("valueFrom" in variable for variable in container.get("env", []))


def test_image_is_pinned_contains_no_secret_and_runs_without_root():
    (base,) = instructions("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert instructions("USER") == ["tppt"]
    declared = " ".join(instructions("ENV") + instructions("ARG"))
    assert not re.search("KEY|SECRET|TOKEN|PASSWORD", declared)
    for sources in (shlex.split(line)[:-1] for line in instructions("COPY")):
        assert all((ROOT / source).exists() for source in sources), sources


def test_build_context_contains_what_is_copied():
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = [source for line in instructions("COPY") for source in shlex.split(line)[:-1]]
    assert "**" in ignore and {Path(source).parts[0] for source in copied} == allowed


def test_image_pins_every_requirement_to_an_allowed_version():
    def lines(file: Path) -> list[Requirement]:
        entries = (line for line in file.read_text().splitlines() if line and line[0] != "#")
        return [Requirement(line) for line in entries]

    pins = {pin.name.lower(): str(pin.specifier) for pin in lines(CLUSTER / "constraints.txt")}
    for requirement in lines(ROOT / "requirements.txt"):
        pin = pins.pop(requirement.name.lower(), "no pin")
        assert pin.startswith("==") and requirement.specifier.contains(pin[2:]), requirement
    assert pins == {}


def test_ray_has_the_same_version_in_image_and_sweep():
    version = documents("sweep")["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"ray=={version}\n" in (CLUSTER / "constraints.txt").read_text()


def test_deepspeed_can_read_the_hostfile():
    assert fetch_hostfile(str(CLUSTER / "hostfile.example")) == {"node-1": 8, "node-2": 8}


def test_deepspeed_can_read_the_variables_for_other_nodes():
    """must hold without the comments, which DeepSpeed would read as variables"""
    example = CLUSTER / "deepspeed_env.example"
    assert "grep -v '^#'" in example.read_text()
    lines = [line for line in example.read_text().splitlines() if not line.startswith("#")]
    names = [line.split("=", maxsplit=1)[0] for line in lines]
    assert all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines)
    assert {name.split("_")[0] for name in names} == {"AWS", "HF", "OMP", "NCCL"}
    assert not re.search("KEY|SECRET|TOKEN", " ".join(names))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pod_that_must_stop_costs_no_step(nodes: Nodes, tiny_run: TinyRun, undisturbed: RunContent):
    """must stop every pod with status 75 when one must stop, and continue when all are back"""
    (container,) = documents("train")["Job"]["spec"]["template"]["spec"]["containers"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    hostfile = tiny_run.folder / "hostfile"
    hostfile.write_text("n1 slots=1\nn2 slots=1\n")

    def start() -> list[Any]:
        replaced = {"/etc/tppt/hostfile": str(hostfile), "pipeline/train.py": TRAIN}
        words = [replaced.get(word, word) for word in container["command"] + container["args"]]
        words = words[: words.index(TRAIN) + 1]
        words = [re.sub("(--master_addr=).*", r"\1n1", word) for word in words]
        words.insert(1, f"--master_port={PORT}")
        return [
            tiny_run.start(
                node, *(w.replace("$(NODE)", str(number)) for w in words), *tiny_run.arguments
            )
            for number, node in enumerate(nodes)
        ]

    tiny_run.hold_at(1, 1)
    both = start()
    both[0].wait_for_task(1)
    stopped = nodes["n2"].run([hook[0], str(ROOT / hook[1])], timeout_s=120)
    assert stopped.returncode == 0, stopped.stdout
    assert not nodes["n2"].processes("train.py --local_rank"), stopped.stdout
    assert [each.status() for each in both] == [75, 75], both[0].log.read_text()[-4000:]

    tiny_run.hold.unlink()
    again = start()
    for each in again:
        each.assert_succeeds()
    assert again[0].has_resumed()
    read_run(tiny_run.output).assert_equals(undisturbed)
    assert wait_until(lambda: not any(node.processes(RANK) for node in nodes), timeout_s=60)
