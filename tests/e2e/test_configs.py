"""Configs that come, change, break and go while the pod serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proto import predict_pb2
from tests.e2e.asking import POINT, answers, config, failing, score, scores, write_models
from tests.e2e.pod import Pod, UpstreamProcess
from tests.frontdoor.process import eventually
from tests.inprocess import InProcess
from tests.upstreams import Upstreams

pytestmark = pytest.mark.slow

CONFIGS = {"shop": config(), "other": config("other_ranker")}
BODY = score("shop", ["a", "b", "c"])
NO_SHAPE = config().replace(b'"shape": [\n', b'"shapes": [\n')


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), CONFIGS)


@pytest.fixture(scope="module")
def pod(models: Path) -> Iterator[Pod]:
    refused = "refused; the last good version is served if there is one"
    with (
        UpstreamProcess(models) as upstreams,
        Pod({**CONFIGS, "bad": NO_SHAPE}, upstreams=upstreams.port, expected_errors=[refused]) as pod,
    ):
        yield pod


def refusal(pod: Pod, model_config_id: str) -> str:
    """The message of INVALID_ARGUMENT."""
    with failing() as caught:
        pod.call(POINT, score(model_config_id, ["a"]))
    assert caught.code is grpc.StatusCode.INVALID_ARGUMENT
    return caught.message


def columns(pod: Pod) -> list[str]:
    return [column.name for column in scores(pod.call(POINT, BODY)).target_output_schema]


def test_good_configs_serve_beside_a_bad_one(pod: Pod, models: Path) -> None:
    assert config() != NO_SHAPE
    assert [pod.call(POINT, BODY)] == answers(CONFIGS, Upstreams.load(models), [BODY])
    message = refusal(pod, "bad")
    assert message.startswith("model_config_id 'bad' is not usable: ")
    assert "component_config.predator_components[0].inputs[0].shape" in message
    (line,) = [line for line in pod.logs() if line["level"] == "error"]
    assert line["place"].endswith("configs/config-map/bad.json")


def test_a_changed_file_is_served_within_seconds(pod: Pod) -> None:
    assert columns(pod) == ["item_id", "item:fp32_shop:price", "score"]
    pod.write_config("shop", config(feature="rating"))
    eventually(
        lambda: columns(pod) == ["item_id", "item:fp32_shop:rating", "score"], "it is served", pod.text
    )
    pod.write_config("shop", CONFIGS["shop"])
    eventually(lambda: columns(pod)[1] == "item:fp32_shop:price", "the old one is served again", pod.text)


def test_a_broken_edit_takes_nothing_out_of_service(pod: Pod) -> None:
    served = columns(pod)
    pod.write_config("shop", CONFIGS["shop"][:-100])
    eventually(
        lambda: any("shop.json" in line.get("place", "") for line in pod.logs()), "it is told", pod.text
    )
    assert columns(pod) == served
    pod.write_config("shop", CONFIGS["shop"])


def test_a_new_config_is_served_and_a_deleted_one_is_not(pod: Pod) -> None:
    assert refusal(pod, "new") == "model_config_id 'new' is unknown"
    pod.write_config("new", config())
    eventually(lambda: is_served(pod, "new"), "it is served", pod.text)
    (pod.home / "configs" / "config-map" / "new.json").unlink()
    eventually(lambda: not is_served(pod, "new"), "it is gone", pod.text)
    assert refusal(pod, "new") == "model_config_id 'new' is unknown"


def is_served(pod: Pod, model_config_id: str) -> bool:
    try:
        pod.call(POINT, score(model_config_id, ["a"]))
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        return False
    return True


def test_a_repaired_config_is_served(pod: Pod) -> None:
    pod.write_config("bad", config())
    eventually(lambda: is_served(pod, "bad"), "it is served", pod.text)


def test_versions_only_grow(pod: Pod) -> None:
    versions = [line["version"] for line in pod.logged("version active") if "late" in line]
    assert len(versions) > 5
    assert versions == sorted(set(versions))


def test_a_pod_without_its_directory_serves_what_it_served_before(models: Path) -> None:
    cannot = "configs cannot be read; the last good ones are served"
    with (
        UpstreamProcess(models) as upstreams,
        Pod(CONFIGS, upstreams=upstreams.port, expected_errors=[cannot]) as pod,
    ):
        expected = pod.call(POINT, BODY)
        (pod.home / "configs").rename(pod.home / "elsewhere")
        sidecar = pod.kill("inferflow: config sidecar")
        eventually(lambda: pod.processes().get("inferflow: config sidecar", sidecar) != sidecar, "it is back")
        pod.kill("inferflow: worker 0")
        eventually(lambda: pod.ready()[0] == 200, "the new worker serves", pod.text)
        assert pod.call(POINT, BODY) == expected


def test_compatibility_switches_reach_the_workers(models: Path) -> None:
    """A text where the schema says FP32: refused, unless all feature values are texts."""
    column = predict_pb2.FeatureSchema(name="weight", data_type=predict_pb2.DataTypeFP32)
    targets = [predict_pb2.Target(id="a", feature_values=[b"1.5"])]
    body = predict_pb2.PointWiseRequest(
        model_config_id="shop", target_input_schema=[column], targets=targets
    ).SerializeToString()
    with (
        UpstreamProcess(models) as upstreams,
        Pod(CONFIGS, upstreams=upstreams.port, INFERFLOW_COMPAT="string-scores,text-features") as pod,
    ):
        schema = scores(pod.call(POINT, body)).target_output_schema
    assert [column.data_type for column in schema] == [14, 4, 14]
    with InProcess(CONFIGS, Upstreams.load(models)) as service:
        assert "('weight') has 3 bytes" in service.ask(POINT, body).message
