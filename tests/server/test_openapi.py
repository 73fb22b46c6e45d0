"""The schema of the HTTP server, attacked and held to its word by schemathesis: nobody here wrote that."""

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS

from tests.fakes import FakeEngine
from tests.server.servers import served
from worker.dialects.base import Dialect
from worker.dialects.table import DIALECTS

pytestmark = [pytest.mark.network, pytest.mark.slow]
# A schema cannot say all that is wrong with a body: base64 that is none, JSON that is none in a string.
EXCLUDED = ("positive_data_acceptance",)
KEY = {"X-API-Key": "k"}
NUM_REQUESTS = 12  # of each operation


def test_every_answer_is_one_that_the_schema_names() -> None:
    with served(FakeEngine(), API_KEY="k", MAX_WRONG_KEYS="1000000") as address:
        given_schema = requests.get(f"{address}/openapi.json", headers=KEY, timeout=10).json()
        schema = schemathesis.openapi.from_dict(given_schema)
        schema.config.update(base_url=address)
        excluded = CHECKS.get_by_names(EXCLUDED)
        tried = []
        for result in schema.get_all_operations():
            operation: Any = result.ok()
            tried.append(operation.path)

            @settings(
                max_examples=NUM_REQUESTS,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                case.call_and_validate(headers=KEY, excluded_checks=excluded)

            check()
    routes = {dialect.route for dialect in DIALECTS if dialect.route is not None}
    assert set(tried) >= {*routes, "/v1/models/{name}", "/health", "/ping", "/metrics", "/"}


EXAMPLES = [dialect for dialect in DIALECTS if dialect.example is not None]


@pytest.mark.parametrize("dialect", EXAMPLES, ids=lambda dialect: dialect.name)
def test_the_examples_of_the_schema_are_answered(dialect: Dialect) -> None:
    with served(FakeEngine()) as address:
        answer = requests.post(f"{address}{dialect.route}", json=dialect.example, timeout=10)
    assert answer.status_code == 200, answer.text
    assert dialect.reply_model is not None
    dialect.reply_model.model_validate(answer.json())
