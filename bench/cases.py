"""What is measured: model configs, and requests to them of any size.

    python -m bench.cases DIRECTORY

writes them as files: a config directory for the service, and for each case and size the message with its gRPC
prefix, ready for `h2load -d`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proto import inferflow_pb2, predict_pb2

__all__ = [
    "CASES",
    "CONFIGS",
    "EXPRESSIONS",
    "POINT_WISE",
    "RETRIEVE",
    "SLATE_WISE",
    "TARGETS",
    "USER",
    "WIDTHS",
    "Case",
    "framed",
    "write_configs",
]

Document = dict[str, Any]

POINT_WISE = "/Predict/InferPointWise"
SLATE_WISE = "/Predict/InferSlateWise"
RETRIEVE = "/Inferflow/RetrieveModelScore"

TARGETS = (1, 10, 100, 500)
"""Sizes of the requests that are measured."""

USER = "u42"
FIRST_ID = 1000  # targets are 1000, 1001, …
SLATES, SLATE_SIZE = 50, 10
DEEP_MODELS = 10  # with the feature component before and the expression behind them: 12 levels
WIDTHS = (1, 4, 16)
"""Branches of the DAGs that executor threads are measured with."""


# ---------------------------------------------------------------- configs


def _group(label: str, data_type: str, names: Sequence[str]) -> Document:
    """A feature group. What its values are follows from its label: see bench.rules."""
    return {"label": label, "data_type": data_type, "features": list(names)}


def _singles(count: int) -> Document:
    """A group of `count` FP32 features."""
    return _group("fp32_main", "DataTypeFP32", [f"f{number}" for number in range(count)])


def _fetch(entity: str, key: str, *groups: Document) -> Document:
    """A feature component `<entity>_fs` with these feature groups."""
    return {
        "component": f"{entity}_fs",
        "component_id": key,
        "fs_keys": [{"schema": key, "col": key}],
        "fs_request": {"label": entity, "featureGroups": list(groups)},
        "fs_flatten_resp_keys": ["id"],
        "comp_cache_ttl": 600,
    }


def _fetch_pairs(entity: str, keys: Sequence[str], *groups: Document) -> Document:
    """The same by a composite key, which is joined from the values of these columns."""
    return _fetch(entity, f"{entity}_id", *groups) | {
        "composite_id": True,
        "fs_keys": [{"schema": f"k{number}", "col": key} for number, key in enumerate(keys)],
    }


def _numbers(entity: str, count: int) -> Document:
    """`count` FP32 features of the targets."""
    return _fetch(entity, "catalog_id", _singles(count))


def _columns(component: Document) -> list[str]:
    """The matrix columns that a feature component writes."""
    request = component["fs_request"]
    return [
        f"{request['label']}:{group['label']}:{name}"
        for group in request["featureGroups"]
        for name in group["features"]
    ]


def _tensor(number: int, columns: Sequence[str], shape: Sequence[int], data_type: str) -> Document:
    return {
        "name": f"input__{number}",
        "features": list(columns),
        "shape": list(shape),
        "data_type": data_type,
    }


def _model(number: int, *inputs: Document, name: str = "model", slates: bool = False) -> Document:
    """A predator component `p<number>` that writes the FP32 column `score<number>`."""
    return {
        "component": f"p{number}",
        "component_id": "catalog_id",
        "model_name": f"{name}{number}",
        "model_end_point": "127.0.0.1",
        "deadline": 1000,
        "batch_size": 500,
        "inputs": list(inputs),
        "outputs": [
            {
                "name": "output__0",
                "model_scores": [f"score{number}"],
                "model_scores_dims": [[1]],
                "data_type": "FP32",
            }
        ],
        "slate_component": slates,
    }


def _scalars(*columns: str) -> Document:
    return _tensor(0, columns, [len(columns)], "FP32")


def _expression(compute_id: str, scores: Sequence[str]) -> Document:
    """A numerix component `final` that computes `final_score`; its variables are s0, s1, …."""
    return {
        "component": "final",
        "component_id": "catalog_id",
        "score_col": "final_score",
        "data_type": "DataTypeFP32",
        "score_mapping": {f"s{number}@DataTypeFP32": score for number, score in enumerate(scores)},
        "compute_id": compute_id,
    }


def _config(
    features: Sequence[Document],
    models: Sequence[Document],
    expressions: Sequence[Document],
    dependencies: Mapping[str, Sequence[str]],
    answer: Sequence[str],
    *,
    cached: bool = False,
) -> Document:
    """A whole model config. `dependencies` says who needs whom; features that it leaves out need nobody."""
    names = [component["component"] for component in features]
    return {
        "dag_execution_config": {
            "component_dependency": {
                **{name: ["feature_initializer"] for name in names},
                **{name: list(parents) for name, parents in dependencies.items()},
            }
        },
        "component_config": {
            "cache_enabled": cached,
            "cache_version": 1,
            "feature_components": [{**component, "comp_cache_enabled": cached} for component in features],
            "predator_components": list(models),
            "numerix_components": list(expressions),
        },
        "response_config": {"features": list(answer), "logging_perc": 100},  # of requests with a tracking id
    }


def _of_user() -> Document:
    """A group of 10 numbers of the user."""
    return _group("fp32_user", "DataTypeFP32", [f"u{number}" for number in range(10)])


def _perf(features: int, *, cached: bool = False) -> Document:
    """`features` numbers a target and 10 of the user, one model over all of them, its score doubled."""
    catalog = _numbers("catalog", features)
    user = _fetch("user", "user_id", _of_user())
    return _config(
        [catalog, user],
        [_model(0, _scalars(*_columns(catalog), *_columns(user)))],
        [_expression("double", ["score0"])],
        {"p0": ["catalog_fs", "user_fs"], "final": ["p0"]},
        ["catalog_id", "final_score"],
        cached=cached,
    )


def _wide(fetches: int, models: int, features: int) -> Document:
    """Many components that run side by side: each model reads an equal share of the fetches."""
    parts = [_numbers(f"e{number}", features) for number in range(fetches)]
    share = fetches // models
    read = [parts[number * share : (number + 1) * share] for number in range(models)]
    scores = [f"score{number}" for number in range(models)]
    return _config(
        parts,
        [
            _model(number, _scalars(*(column for part in own for column in _columns(part))))
            for number, own in enumerate(read)
        ],
        [_expression(f"sum{models}", scores)],
        {f"p{number}": [part["component"] for part in own] for number, own in enumerate(read)}
        | {"final": [f"p{number}" for number in range(models)]},
        ["catalog_id", "final_score"],
    )


def _deep() -> Document:
    """A chain: each model reads the score of the one before."""
    catalog = _numbers("catalog", 20)
    before = [_columns(catalog), *([f"score{number}"] for number in range(DEEP_MODELS - 1))]
    return _config(
        [catalog],
        [_model(number, _scalars(*columns)) for number, columns in enumerate(before)],
        [_expression("double", [f"score{DEEP_MODELS - 1}"])],
        {"p0": ["catalog_fs"]}
        | {f"p{number}": [f"p{number - 1}"] for number in range(1, DEEP_MODELS)}
        | {"final": [f"p{DEEP_MODELS - 1}"]},
        ["catalog_id", "final_score"],
    )


def _text() -> Document:
    """Values of varying length: eight strings and an embedding of 128 numbers a target."""
    strings = _fetch(
        "catalog",
        "catalog_id",
        _group("string_main", "DataTypeString", [f"s{number}" for number in range(8)]),
    )
    vectors = _fetch("vector", "catalog_id", _group("fp32v128_main", "DataTypeFP32Vector", ["embedding"]))
    return _config(
        [strings, vectors],
        [
            _model(
                0,
                _tensor(0, _columns(strings), [8], "BYTES"),
                _tensor(1, _columns(vectors), [128], "FP32"),
                name="text",
            )
        ],
        [],
        {"p0": ["catalog_fs", "vector_fs"]},
        ["catalog_id", _columns(strings)[0], "score0"],
    )


def _derived() -> Document:
    """Entities found by way of others: a product's category and seller, and the user's taste for the category."""
    kinds = _group("string40_main", "DataTypeString", ["category"])
    makers = _group("int64_main", "DataTypeInt64", ["seller"])
    product = _fetch("product", "catalog_id", _singles(20), kinds, makers)
    *numbers, by_category, by_seller = _columns(product)
    category = _fetch("category", by_category, _singles(10))
    seller = _fetch("seller", by_seller, _singles(5))
    taste = _fetch_pairs("user_category", ["user_id", by_category], _singles(5))
    user = _fetch("user", "user_id", _of_user())
    derived = [category, seller, taste]
    read = [*numbers, *(column for part in (*derived, user) for column in _columns(part))]
    return _config(
        [product, *derived, user],
        [_model(0, _scalars(*read))],
        [_expression("double", ["score0"])],
        {part["component"]: ["product_fs"] for part in derived}
        | {"p0": ["user_fs", *(part["component"] for part in derived)], "final": ["p0"]},
        ["catalog_id", "final_score"],
    )


def _slates() -> Document:
    """Targets and slates are both scored; the slate model is called once a slate."""
    catalog = _numbers("catalog", 20)
    inputs = _scalars(*_columns(catalog))
    return _config(
        [catalog],
        [_model(0, inputs), _model(1, inputs, name="slates", slates=True)],
        [],
        {"p0": ["catalog_fs"], "p1": ["catalog_fs"]},
        ["catalog_id", "score0", "score1"],
    )


CONFIGS: Mapping[str, Document] = {
    "perf10": _perf(10),
    "perf60": _perf(60),
    "perf60c": _perf(60, cached=True),
    "wide": _wide(fetches=16, models=4, features=20),
    "deep": _deep(),
    "text": _text(),
    "derived": _derived(),
    "slates": _slates(),
    **{f"width{width}": _wide(fetches=width, models=width, features=20) for width in WIDTHS},
}
"""Model configs by model_config_id. Components stand in an order in which they can run one by one."""

EXPRESSIONS: Mapping[str, str] = {
    "double": "s0 2 *",
    **{f"sum{count}": " ".join(["s0", *(f"s{number} +" for number in range(1, count))]) for count in WIDTHS},
}
"""Numerix expressions by compute_id."""


def write_configs(directory: Path) -> None:
    """Lays out `directory` as INFERFLOW_CONFIG_DIR. It must exist."""
    for folder, files in (
        ("config-map", CONFIGS),
        ("expression-config", {name: {"expression": text} for name, text in EXPRESSIONS.items()}),
    ):
        (directory / folder).mkdir(exist_ok=True)
        for name, content in files.items():
            (directory / folder / f"{name}.json").write_text(json.dumps(content, indent=1))


# ---------------------------------------------------------------- requests


def _ids(targets: int) -> Iterator[str]:
    return (str(FIRST_ID + number) for number in range(targets))


def _point_wise(config: str, targets: int) -> predict_pb2.PointWiseRequest:
    request = predict_pb2.PointWiseRequest(model_config_id=config)
    request.context_features.add(name="user_id", value=USER.encode(), data_type=predict_pb2.DataTypeString)
    for identity in _ids(targets):
        request.targets.add(id=identity)
    return request


def _slate_wise(config: str, targets: int) -> predict_pb2.SlateWiseRequest:
    """50 slates of 10 targets: all different ones when there are 500, the same again when there are fewer."""
    request = predict_pb2.SlateWiseRequest(model_config_id=config)
    for identity in _ids(targets):
        request.targets.add(id=identity)
    for number in range(SLATES):
        first = number * SLATE_SIZE
        request.slates.add(target_indices=[place % targets for place in range(first, first + SLATE_SIZE)])
    return request


def _retrieve(config: str, targets: int) -> inferflow_pb2.InferflowRequestProto:
    request = inferflow_pb2.InferflowRequestProto(model_config_id=config)
    request.entities.add(entity="catalog_id", ids=list(_ids(targets)))
    request.entities.add(entity="user_id", ids=[USER])
    return request


Request = predict_pb2.PointWiseRequest | predict_pb2.SlateWiseRequest | inferflow_pb2.InferflowRequestProto
_REQUESTS: Mapping[str, Callable[[str, int], Request]] = {
    POINT_WISE: _point_wise,
    SLATE_WISE: _slate_wise,
    RETRIEVE: _retrieve,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One job. `peer` is the config that the naive peer runs beside it, which may be another job's."""

    name: str
    about: str
    config: str
    method: str = POINT_WISE
    peer: str = "perf60"

    @property
    def same_job(self) -> bool:
        """Whether the peer does the same; otherwise it is there as a yardstick for the machine's speed."""
        return self.method == POINT_WISE and self.config.startswith("perf")

    def message(self, targets: int) -> bytes:
        """The request message for targets 1000, 1001, …."""
        message: bytes = _REQUESTS[self.method](self.config, targets).SerializeToString()
        return message


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case("perf10", "10 + 10 numbers a target, one model, one expression", "perf10", peer="perf10"),
        Case("perf60", "60 + 10 numbers a target, one model, one expression", "perf60"),
        Case("perf60c", "the same with the feature cache, warm", "perf60c"),
        Case("wide", "16 fetches of 20 numbers, 4 models side by side, one expression", "wide"),
        Case("deep", "12 levels: one fetch, 10 models in a chain, one expression", "deep"),
        Case("text", "8 strings and an embedding of 128 numbers a target, one model", "text"),
        Case(
            "derived",
            "product, then its category and seller, then user × category; a model, an expression",
            "derived",
        ),
        Case("slates", "50 slates of 10 targets, a target model and a slate model", "slates", SLATE_WISE),
        Case("retrieve", "perf60 through RetrieveModelScore: answers in text form", "perf60", RETRIEVE),
    )
}
"""What `make bench` measures, by name."""


def framed(message: bytes) -> bytes:
    """The message with its gRPC prefix: not compressed, length."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cases", description="Write configs and requests.")
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write_configs(directory)
    for case in CASES.values():
        for targets in TARGETS:
            (directory / f"{case.name}_{targets}.bin").write_bytes(framed(case.message(targets)))


if __name__ == "__main__":
    main()
