"""Figures for Prometheus: how long requests and their stages take, how full queues, batches and caches are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from mmrec.errors import MissingExtraError
from mmrec.serving.answers.about import State
from mmrec.serving.figures.drift import ScoreDrift
from mmrec.serving.figures.figure_board import FigureBoard
from mmrec.serving.trace import Trace

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
except ImportError as error:
    raise MissingExtraError("prometheus_client", "serve") from error

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CONTENT = ("text", "image")
_POSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one process.  Labels are routes, stages and statuses, never ids.

    Args:
        board: where the processes of one service show each other theirs.
    """

    def __init__(self, board: FigureBoard | None = None) -> None:
        self._registry, self._board = CollectorRegistry(), board
        self._requests = Counter("mmrec_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "mmrec_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self._stages = Histogram(
            "mmrec_stage_seconds",
            "Time of a request in one stage.",
            ["route", "stage"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "mmrec_batch_size", "Posts and users that the model ran together.", buckets=_POSTS, registry=self._registry
        )
        self._swaps = Counter("mmrec_model_swaps", "Swaps of the model.", ["outcome"], registry=self._registry)
        self._posts = Counter("mmrec_posts", "Posts that requests brought along.", ["route"], registry=self._registry)
        self._posts_without = Counter(
            "mmrec_posts_without",
            "Those of them without something that the model reads.",
            ["route", "modality"],
            registry=self._registry,
        )
        self._reads: Callable[[], Collection[str]] = lambda: _CONTENT
        self._drift = ScoreDrift()
        self._registry.register(_Scores(self._drift))
        self._in_work = Gauge("mmrec_requests_in_work", "Requests in work or waiting for it.", registry=self._registry)

    def watch(self, state: Callable[[], State], *, reads: Callable[[], Collection[str]]) -> None:
        """Read further figures off the service whenever somebody asks.

        Args:
            state: figures of the moment.
            reads: the modalities that the model reads of posts.
        """
        self._registry.register(_Reader(state))
        self._reads = reads

    def on_batch(self, size: int) -> None:
        """Count a batch of the model."""
        self._batches.observe(size)

    def expect_swaps(self, outcomes: Iterable[str]) -> None:
        """Show outcomes that did not happen yet, so that their first is seen as a rise."""
        for outcome in outcomes:
            self._swaps.labels(outcome)

    def on_swap(self, outcome: str) -> None:
        """Count a swap of the model."""
        self._swaps.labels(outcome).inc()

    def on_work(self, change: int) -> None:
        """Count requests that begin (1) and end (-1)."""
        self._in_work.inc(change)

    def on_answer(self, trace: Trace, status: int) -> None:
        """Count an answer and its stages."""
        self._requests.labels(trace.route, str(status)).inc()
        self._seconds.labels(trace.route).observe(trace.elapsed)
        # A request that was given up may still add stages from its thread.
        for stage, seconds in list(trace.stages.items()):
            self._stages.labels(trace.route, stage).observe(seconds)
        posts = list(trace.posts)
        read = [modality for modality in _CONTENT if modality in self._reads()] if posts else []
        for present in posts:
            self._posts.labels(trace.route).inc()
            for modality in read:
                self._posts_without.labels(trace.route, modality).inc(modality not in present)
        if trace.scores:
            self._drift.add(trace.route, trace.model_hash, list(trace.scores))

    def page(self) -> bytes:
        """Return everything, that of the other processes too, in the text format of Prometheus."""
        return generate_latest(self._registry) if self._board is None else self._board.page(self._registry)

    def share(self) -> None:
        """Show the figures to the other processes."""
        if self._board is not None:
            self._board.put(self._registry)


class _Scores:
    """How scores have moved."""

    def __init__(self, drift: ScoreDrift) -> None:
        self._drift = drift

    def collect(self) -> Iterator[Metric]:
        """Yield mean and deviation of every route, of the start and of now, and the distance of the two means."""
        mean = GaugeMetricFamily("mmrec_score_mean", "Mean of the scores that are shown.", labels=["route", "of"])
        deviation = GaugeMetricFamily("mmrec_score_deviation", "Their standard deviation.", labels=["route", "of"])
        shift = GaugeMetricFamily(
            "mmrec_score_shift", "How far the mean has moved since the start, in deviations.", labels=["route"]
        )
        for route, figures in self._drift.figures().items():
            for when, spread in (("start", figures.start), ("now", figures.now)):
                mean.add_metric([route, when], spread.mean)
                deviation.add_metric([route, when], spread.deviation)
            shift.add_metric([route], figures.shift)
        yield from (mean, deviation, shift)


class _Reader:
    """Figures that the service keeps itself."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield them as they are now."""
        state = self._state()
        yield GaugeMetricFamily("mmrec_queue_depth", "Posts and users that wait for the model.", state.queue_depth)
        yield CounterMetricFamily(
            "mmrec_cache_hits", "Contents whose vector was there or on its way.", state.cache_hits
        )
        yield CounterMetricFamily("mmrec_cache_misses", "Contents that had to be encoded.", state.cache_misses)
        yield GaugeMetricFamily("mmrec_cached_vectors", "Vectors kept by content.", state.cache_size)
        index = GaugeMetricFamily("mmrec_index_items", "Items by where they come from.", labels=["source"])
        index.add_metric(["exported"], state.exported)
        index.add_metric(["published"], state.published)
        yield index
        yield InfoMetricFamily("mmrec_model", "What answers.", {"hash": state.model_hash})
