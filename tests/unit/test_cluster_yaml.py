"""cluster.yaml: what can be checked of it without a host to log in to.

Ray's own functions complete and check it as ``ray up`` would; the commands are parsed by a shell; what they call
is looked up in the CLI and in Ray's monitor.
"""

import copy
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config, with_head_node_ip

from cloudfarm.cli.app import app
from cloudfarm.settings import Settings

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster.yaml"
CLOUDFARM = "~/cloudfarm/.venv/bin/cloudfarm "


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture
def config(raw) -> dict[str, Any]:
    return prepare_config(copy.deepcopy(raw))


def commands(config: dict[str, Any]) -> list[str]:
    names = (
        "head_setup_commands",
        "worker_setup_commands",
        "head_start_ray_commands",
        "worker_start_ray_commands",
    )
    return [command for name in names for command in config[name]]


def test_rays_own_checks_accept_it(config):
    validate_config(config)


def test_rays_schema_knows_every_key_of_it(raw):
    # Completed or not: a misspelt key must not pass as an extra one.
    validate_config({**raw, "cluster_synced_files": []})


@pytest.mark.parametrize(
    "change",
    [{"workers": 2}, {"head_start_ray_commands": "cloudfarm up"}, {"provider": {"head_ip": "10.0.0.1"}}],
)
def test_rays_schema_would_notice_a_mistake(config, change):
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, **change})


def test_every_worker_is_started_and_none_is_ever_scaled_away(config, raw):
    (kind,) = config["available_node_types"].values()
    workers = len(raw["provider"]["worker_ips"])
    assert workers > 0
    assert (kind["min_workers"], kind["max_workers"], config["max_workers"]) == (workers, workers, workers)


def test_every_command_parses(config):
    started = with_head_node_ip(config["worker_start_ray_commands"], "10.0.0.1")
    for command in [*commands(config), *started]:
        run = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"{command}\n{run.stderr}"


def test_head_and_workers_agree_on_address_and_port(raw):
    head, port = raw["provider"]["head_ip"], Settings.model_fields["internal_port_base"].default
    up, monitor = raw["head_start_ray_commands"]
    assert f"--bind {head}" in up
    assert f"--gcs-address={head}:{port} " in monitor
    assert f"join $RAY_HEAD_IP:{port} " in raw["worker_start_ray_commands"][0]
    others = set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", f"{up} {monitor}")) - {head}
    assert others == set(), "an address was changed in one place only"


def test_the_workers_find_the_token_where_join_looks_for_it(raw):
    (remote,) = (path for path in raw["file_mounts"] if path.endswith("ray-token"))
    assert remote == "~/.local/state/cloudfarm/ray-token"
    assert any(f"chmod 600 {remote}" in command for command in raw["setup_commands"])


def test_the_farms_own_commands_and_options_exist(raw):
    group = typer.main.get_command(app)
    called = [text for text in commands(prepare_config(raw)) if CLOUDFARM in text]
    assert len(called) == 2
    for text in called:
        name, rest = text.partition(CLOUDFARM)[2].split(" ", 1)
        options = {option for param in group.commands[name].params for option in param.opts}
        assert set(re.findall(r"(?<= )--[a-z-]+", f" {rest}")) <= options, text


def test_the_monitor_is_where_it_is_called_and_knows_its_options(raw):
    spec = find_spec("ray.autoscaler._private.monitor")
    assert spec is not None
    source = Path(spec.origin).read_text()
    monitor = raw["head_start_ray_commands"][-1].partition("ray.autoscaler._private.monitor")[2]
    options = re.findall(r"--[a-z-]+", monitor)
    assert len(options) == 3
    for option in options:
        assert f'"{option}"' in source


def test_the_file_says_what_was_not_tried():
    assert "NOT TRIED" in FILE.read_text()
