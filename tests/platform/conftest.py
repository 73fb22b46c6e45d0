"""One started worker for all tests of this folder that leave it as it was."""

from collections.abc import Iterator

import pytest

from tests.platform.stand_in import Platform
from tests.platform.workers import until, worker


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    log = tmp_path_factory.mktemp("worker") / "log"
    with Platform() as platform, log.open("w") as output, worker(platform, output=output):
        until(lambda: platform.calls["job-take-batch"] > 0)
        yield platform
