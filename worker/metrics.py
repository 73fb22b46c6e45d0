"""What this worker has done and is doing, as Prometheus reads it."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from worker.core.contract import Usage

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _Registry:
    """Counts with a registry of their own, so that several can live in a process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def gauge(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A number that is read whenever somebody asks."""
        Gauge(f"worker_{name}", about, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return bytes(generate_latest(self._registry))


class ServerMetrics(_Registry):
    """Counts of one HTTP server, also of requests that never reach the service."""

    def __init__(self) -> None:
        super().__init__()
        about = "Requests and connections that the server refused"
        self._refusals = Counter("worker_http_refusals", about, ["code"], registry=self._registry)

    def refused(self, code: str) -> None:
        """One was refused, with an error's code."""
        self._refusals.labels(code).inc()


class Metrics(_Registry):
    """Counts of one worker."""

    def __init__(self) -> None:
        super().__init__()
        ProcessCollector(registry=self._registry)  # memory and processor time of the process

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"worker_{name}", about, labels, registry=self._registry)

        self._requests = counter("requests", "Requests, by dialect and how they ended", "dialect", "code")
        self._tokens = counter("tokens", "Tokens, by kind", "kind")
        self._seconds = Histogram(
            "worker_phase_seconds", "Seconds of a request's phases", ["phase"], buckets=SECONDS, registry=self._registry
        )

    def answered(self, seconds: Mapping[str, float]) -> None:
        """An answer is complete: the seconds of its phases."""
        for phase, took in seconds.items():
            self._seconds.labels(phase).observe(took)

    def used(self, usage: Usage) -> None:
        """So many tokens were computed."""
        for kind in ("prompt", "completion", "image", "video", "cached"):
            self._tokens.labels(kind).inc(getattr(usage, f"{kind}_tokens"))

    def ended(self, dialect: str, code: str) -> None:
        """A request has ended: `ok`, an error's code, or `cancelled`."""
        self._requests.labels(dialect, code).inc()
