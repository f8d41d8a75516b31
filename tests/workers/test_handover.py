"""Which requests are offered to the log sidecar, and what is noted of them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec
import pytest

from dag.config import decode
from proto import inferflow_pb2, predict_pb2
from shared.log_link import ConfigVersion, LogLink
from shared.log_record import LoggedConfig, Notes
from shared.shm_matrix import ShmMatrix
from tests.e2e.asking import POINT, RETRIEVE, config
from tests.inprocess import InProcess
from tests.upstreams import Upstreams
from workers.handover import Handover


def config_of(percentage: int) -> bytes:
    document = json.loads(config())
    document["response_config"]["logging_perc"] = percentage
    return json.dumps(document).encode()


class Offers:
    """In the place of a link: notes what it is offered, and takes nothing."""

    def __init__(self) -> None:
        self.notes: list[Notes] = []
        self.versions: list[ConfigVersion] = []
        self.documents: list[bytes] = []

    def lend(
        self,
        matrix: ShmMatrix,
        slates: ShmMatrix | None,
        notes: Callable[[], Notes],
        version: ConfigVersion,
        document: Callable[[], bytes],
    ) -> bool:
        self.notes.append(notes())
        self.versions.append(version)
        self.documents.append(document())
        return False


class World:
    def __init__(self, percentage: int, answers: Upstreams) -> None:
        self.offers = Offers()
        self.text = config_of(percentage)
        self.service = InProcess({"shop": self.text}, answers)
        handover = Handover(cast(LogLink, self.offers), datetime.UTC)
        self.service.service.inference_log = handover

    def point(self, tracking_id: str = "t", **metadata: str) -> Any:
        request = predict_pb2.PointWiseRequest(
            model_config_id="shop", tracking_id=tracking_id, targets=[predict_pb2.Target(id="a")]
        )
        named = {
            name.replace("_", "-") if name == "user_id" else name: text for name, text in metadata.items()
        }
        return self.service.ask(POINT, request.SerializeToString(), metadata=named)

    def retrieve(self, user: str) -> Any:
        request = inferflow_pb2.InferflowRequestProto(model_config_id="shop", tracking_id="t")
        request.entities.add(entity="item_id", ids=["a", "b"])
        return self.service.ask(RETRIEVE, request.SerializeToString(), metadata={"user-id": user})


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    directory = tmp_path_factory.mktemp("models")
    (directory / "shop.json").write_bytes(config())
    made: list[World] = []

    def make(percentage: int) -> World:
        made.append(World(percentage, Upstreams.load(directory)))
        return made[-1]

    yield make
    for one in made:
        assert one.service.pool.busy == 0, "what is refused is freed"
        one.service.__exit__(None, None, None)


def test_what_is_noted(world: Callable[[int], World]) -> None:
    here = world(100)
    answered = here.point("t-1", clp_id="clp9", search_query="", user_id="u1")
    (notes,) = here.offers.notes
    assert (notes.method, notes.tracking_id, notes.user_id, notes.parent_entity) == (1, "t-1", "u1", "clp9")
    assert notes.request_id == answered.request_id
    assert notes.routes == {"rank": "127.0.0.1"}
    introduced = msgspec.json.decode(here.offers.documents[0], type=LoggedConfig)
    assert (introduced.model_config_id, introduced.digest) == here.offers.versions[0][:2]
    assert decode(bytes(introduced.document)) == decode(here.text), "nothing of it is lost on the way"


def test_request_ids_are_unique(world: Callable[[int], World]) -> None:
    here = world(100)
    assert len({here.point().request_id for _ in range(50)}) == 50


@pytest.mark.parametrize(("percentage", "offered"), [(0, 0), (100, 20)])
def test_none_and_all_are_sampled(world: Callable[[int], World], percentage: int, offered: int) -> None:
    here = world(percentage)
    for _ in range(20):
        here.point()
    assert len(here.offers.notes) == offered


def test_some_are_sampled_at_random(world: Callable[[int], World]) -> None:
    here = world(50)
    for _ in range(200):
        here.point()
    assert 50 < len(here.offers.notes) < 150  # outside of it once in 10^12 runs


def test_requests_without_a_tracking_id_are_not_offered(world: Callable[[int], World]) -> None:
    here = world(100)
    here.point("")
    assert here.offers.notes == []


def test_retrieve_is_sampled_by_user_and_day(world: Callable[[int], World]) -> None:
    here = world(50)
    for _ in range(3):
        for user in range(40):
            here.retrieve(f"user {user}")
    users = [notes.user_id for notes in here.offers.notes]
    assert 0 < len(set(users)) < 40
    assert all(users.count(user) == 3 for user in users), "all requests of a user or none"


def test_requests_that_were_not_served_are_not_offered(world: Callable[[int], World]) -> None:
    here = world(100)
    request = predict_pb2.PointWiseRequest(model_config_id="shop", tracking_id="t")
    assert here.service.ask(POINT, request.SerializeToString()).status != 0
    assert here.offers.notes == []
