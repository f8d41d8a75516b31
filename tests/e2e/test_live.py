"""Configs that change under load, endpoints that are not there, parts of the pod that are away."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.e2e.asking import POINT, config, score, scores, write_models
from tests.e2e.pod import Load, Pod, UpstreamProcess
from tests.frontdoor.process import PATIENCE, eventually, free_port
from tests.sidecar.texts import BROKEN

pytestmark = pytest.mark.slow

CONFIGS = {"shop": config(), "other": config("other_ranker")}
BODY = score("shop", ["a", "b", "c"])
CONSTANTS = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), CONFIGS)


@pytest.fixture(scope="module")
def upstreams(models: Path) -> Iterator[UpstreamProcess]:
    with UpstreamProcess(models) as process:
        yield process


class LivePod(Pod):
    """A pod whose admin port is known."""

    def __init__(self, configs: Mapping[str, bytes], upstreams: int, **more: Any) -> None:
        self.admin_port = free_port()
        super().__init__(configs, upstreams=upstreams, INFERFLOW_ADMIN_PORT=str(self.admin_port), **more)


def admin(
    pod: LivePod, method: str, path: str, body: bytes = b"", **query: str
) -> tuple[int, dict[str, Any]]:
    """Status and answer of a request to the admin port; (0, {}) while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", pod.admin_port, timeout=PATIENCE)
    with contextlib.closing(connection):
        try:
            connection.request(method, f"{path}?{urlencode(query)}", body)
            response = connection.getresponse()
        except ConnectionRefusedError:
            return 0, {}
        return response.status, json.loads(response.read())


def state(pod: LivePod, name: str) -> str:
    answer = admin(pod, "GET", "/config/show", key=name)[1]
    return str(answer.get("state", ""))


# ---------------------------------------------------------------- activations under load


def versioned(number: int) -> bytes:
    """A config that shows its version twice: in the name of a column, and in a constant that it computes."""
    document = json.loads(config())
    parts = document["component_config"]
    parts["predator_components"] = []
    parts["numerix_components"] = [
        {
            "component": "mark",
            "component_id": "item_id",
            "score_col": f"version_{number}",
            "data_type": "DataTypeFP32",
            "score_mapping": {"x@DataTypeFP32": "item:fp32_shop:price"},
            "compute_id": f"constant_{number % CONSTANTS}",
        }
    ]
    document["dag_execution_config"]["component_dependency"] = {
        "fetch": ["feature_initializer"],
        "mark": ["fetch"],
    }
    document["response_config"]["features"] = ["item_id", f"version_{number}"]
    return json.dumps(document).encode()


def seen_version(answer: bytes) -> int:
    """The version of an answer. Fails when it shows two."""
    response = scores(answer)
    number = int(response.target_output_schema[1].name.removeprefix("version_"))
    for one in response.target_scores:
        assert one.error == ""
        assert struct.unpack("<f", one.output_values[1])[0] == number % CONSTANTS
    return number


class Versions:
    """Asks again and again, and remembers which versions it saw."""

    def __init__(self, pod: Pod) -> None:
        self.seen: set[int] = set()
        self.took: list[float] = []
        self._ask = pod.method(POINT)

    def __call__(self) -> None:
        began = time.perf_counter()
        answer = self._ask(BODY, timeout=PATIENCE)
        self.took.append(time.perf_counter() - began)
        self.seen.add(seen_version(answer))


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    (pages,) = re.findall(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(pages) << 10


def activate_all(pod: LivePod, first: int, count: int) -> None:
    """Puts `count` versions into the pod, ten a second at most; every fifth is a bad one of another config."""
    for number in range(first, first + count):
        began = time.monotonic()
        if number % 5:
            text = versioned(number)
            revision = admin(pod, "POST", "/config/check", text, key="shop")[1]["revision"]
            status, answer = admin(pod, "POST", "/config/put", text, key="shop", revision=str(revision))
            assert status == 200, answer
        else:
            pod.write_config("other", BROKEN + str(number).encode())
        time.sleep(max(0.0, began + 0.1 - time.monotonic()))


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.full)])
def test_activations_under_load_fail_no_request_and_mix_no_versions(
    upstreams: UpstreamProcess, count: int
) -> None:
    expressions = {f"constant_{number}": f"x 0 * {number} +" for number in range(CONSTANTS)}
    refused = "refused; the last good version is served if there is one"
    pod = LivePod(
        {"shop": versioned(1), "other": versioned(2)},
        expressions=expressions,
        upstreams=upstreams.port,
        expected_errors=[refused],
        INFERFLOW_WORKERS="2",
        NUMERIX_CLIENT_V1_HOST="",
    )
    with pod:
        ask = Versions(pod)
        load = Load(ask, 3)
        warm = max(30, count // 10)
        activate_all(pod, 1, warm)
        before = {title: resident(pid) for title, pid in pod.processes().items()}
        activate_all(pod, 1 + warm, count - warm)
        last = max(number for number in range(count + 1) if number % 5)
        eventually(lambda: last in ask.seen, "the last version is served", pod.text)
        load.stop()
        assert load.errors == []
        assert load.answers > count
        assert len(ask.seen) > count / 4
        after = {title: resident(pid) for title, pid in pod.processes().items()}
        assert after.keys() == before.keys(), "nobody died"
        for title in before:
            assert after[title] < before[title] * 1.2 + (20 << 20), f"memory of {title}"
        eventually(lambda: state(pod, "other") == "kept", "the bad ones are kept out", pod.text)
        assert state(pod, "shop") == "active"


# ---------------------------------------------------------------- endpoints


def with_endpoint(endpoint: str) -> bytes:
    return config().replace(b'"model_end_point": "127.0.0.1"', f'"model_end_point": "{endpoint}"'.encode())


def test_a_new_endpoint_that_does_not_answer_keeps_the_old_version(
    upstreams: UpstreamProcess, models: Path
) -> None:
    with UpstreamProcess(models) as elsewhere, LivePod(CONFIGS, upstreams=upstreams.port) as pod:
        elsewhere.kill()
        expected = pod.call(POINT, BODY)
        endpoint = f"127.0.0.1:{elsewhere.port}"
        pod.write_config("shop", with_endpoint(endpoint))
        pod.write_config("fresh", config("ranker", feature="rating"))
        eventually(lambda: state(pod, "shop") == "waiting", "it waits", pod.text)
        shown = admin(pod, "GET", "/config/show", key="shop")[1]
        assert f"waiting for endpoint {endpoint}: " in shown["reasons"][0]
        assert pod.call(POINT, BODY) == expected
        eventually(lambda: state(pod, "fresh") == "active", "it holds no other back", pod.text)
        elsewhere.start()
        eventually(lambda: state(pod, "shop") == "active", "the new version is active", pod.text)
        assert pod.call(POINT, BODY) == expected
        assert elsewhere.take_calls() != []
        pod.write_config("shop", CONFIGS["shop"])
        closed = "upstreams closed: no config uses them"
        eventually(lambda: pod.logged(closed) != [], "its channel is closed", pod.text)
        assert pod.logged(closed)[0]["targets"] == [endpoint]


# ---------------------------------------------------------------- parts that are away


def control(pod: LivePod, *command: str) -> None:
    """Has supervisord do something."""
    settings = pod.home / "control.conf"
    settings.write_text(f"[supervisorctl]\nserverurl=unix://{pod.run_dir}/supervisor.sock\n")
    program = Path(sys.executable).with_name("supervisorctl")
    subprocess.run(
        [str(program), "-c", str(settings), *command],
        check=True,
        timeout=PATIENCE,
        stdout=subprocess.DEVNULL,
    )


def test_a_worker_that_starts_without_a_sidecar_serves_what_was_saved(upstreams: UpstreamProcess) -> None:
    with LivePod(CONFIGS, upstreams=upstreams.port) as pod:
        expected = pod.call(POINT, BODY)
        version = pod.ready()[1]["version"]
        control(pod, "stop", "config")
        assert pod.call(POINT, BODY) == expected
        first = pod.kill("inferflow: worker 0")
        eventually(lambda: pod.processes().get("inferflow: worker 0", first) != first, "it is back", pod.text)
        eventually(lambda: pod.ready()[0] == 200, "it serves", pod.text)
        assert pod.ready()[1]["version"] == version
        assert pod.call(POINT, BODY) == expected
        control(pod, "start", "config")
        eventually(lambda: admin(pod, "GET", "/status")[0] == 200, "the sidecar is back", pod.text)
        assert admin(pod, "GET", "/status")[1]["active"] == version, "equal digests are no change"
        pod.write_config("new", config())
        eventually(lambda: state(pod, "new") == "active", "it goes on", pod.text)


def test_a_pod_whose_source_is_away_says_so_and_catches_up(upstreams: UpstreamProcess) -> None:
    cannot = "configs cannot be read; the last good ones are served"
    with LivePod(CONFIGS, upstreams=upstreams.port, expected_errors=[cannot]) as pod:
        directory = pod.home / "configs"
        directory.rename(pod.home / "elsewhere")
        eventually(lambda: "notice" in pod.ready()[1], "it says so", pod.text)
        notice = pod.ready()[1]["notice"]
        assert notice.startswith("configs cannot be read, the last good ones are served: ")
        assert notice.endswith("is no directory (INFERFLOW_CONFIG_DIR)")
        (pod.home / "elsewhere").rename(directory)
        eventually(lambda: "notice" not in pod.ready()[1], "it is over", pod.text)


def under_load(pod: LivePod, act: Callable[[], None]) -> None:
    """Does something while clients ask; no request may fail."""
    ask = pod.method(POINT)
    load = Load(lambda: ask(BODY, timeout=PATIENCE), 2)
    try:
        act()
    finally:
        load.stop()
    assert load.errors == []
    assert load.answers


def test_a_sidecar_killed_in_the_middle_of_activations_disturbs_nobody(upstreams: UpstreamProcess) -> None:
    with LivePod(CONFIGS, upstreams=upstreams.port) as pod:

        def kill_again_and_again() -> None:
            for number in range(4):
                pod.write_config("shop", config(feature=("price", "rating")[number % 2]))
                gate = threading.Event()
                gate.wait(0.1 + 0.2 * number)  # at another moment each time
                first = pod.kill("inferflow: config sidecar")
                eventually(
                    lambda first=first: pod.processes().get("inferflow: config sidecar", first) != first,  # type: ignore[misc]
                    "it is back",
                    pod.text,
                )

        under_load(pod, kill_again_and_again)
        eventually(lambda: state(pod, "shop") == "active", "it has caught up", pod.text)
        columns = [column.name for column in scores(pod.call(POINT, BODY)).target_output_schema]
        eventually(lambda: "item:fp32_shop:rating" in columns, "the last version is served", pod.text)
