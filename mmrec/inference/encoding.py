"""Running the model over a catalogue and over histories: one function each, used by every room that needs vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmrec.batch import ItemBatch
from mmrec.feed.batches import ranks_within, user_batch
from mmrec.feed.histories import Histories
from mmrec.feed.items import ItemReader
from mmrec.feed.splits import Cases
from mmrec.model.recommender import RecommenderModel
from mmrec.storage import RaggedArray

ITEMS_AT_ONCE = 512
Progress = Callable[[int], None]
"""Called with the number of things done since the last call."""


class evaluating:  # noqa: N801  (reads as a statement: ``with evaluating(model):``)
    """Context in which a module is in evaluation mode and records no gradient; its mode comes back afterwards.

    Args:
        model: the module.
        trains_on: whether it keeps tensors made here for later training, as sharded blocks do that are put together.
    """

    def __init__(self, model: nn.Module, *, trains_on: bool = False) -> None:
        self._model = model
        self._grad = torch.no_grad() if trains_on else torch.inference_mode()

    def __enter__(self) -> None:
        self._was_training = self._model.training
        # To walk through every module of the encoders takes as long as to answer a request.
        if self._was_training:
            self._model.eval()
        self._grad.__enter__()

    def __exit__(self, *error: object) -> None:
        self._grad.__exit__(*error)
        if self._was_training:
            self._model.train()


def _near_contents(reader: ItemReader, item_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order items so that those which share a content are neighbours: a shared caption is then encoded once."""
    keys = []
    for modality in reversed(list(reader.modalities.values())):
        links = modality.links.gather(item_rows)
        first = np.full(len(item_rows), -1, dtype=np.int64)
        some = links.lengths > 0
        first[some] = links.values[links.offsets[:-1][some]]
        keys.append(first)
    return np.lexsort(keys) if keys else np.arange(len(item_rows))


def catalogue_batches(
    reader: ItemReader, item_rows: npt.NDArray[np.int64], *, batch_items: int
) -> Iterator[tuple[npt.NDArray[np.int64], ItemBatch]]:
    """Yield positions in ``item_rows`` and the batch of their items, neighbours sharing contents."""
    order = _near_contents(reader, item_rows)
    for start in range(0, len(order), batch_items):
        index = order[start : start + batch_items]
        yield index, reader.read(item_rows[index])


def encode_catalogue(
    model: RecommenderModel,
    reader: ItemReader,
    item_rows: npt.NDArray[np.int64],
    *,
    device: torch.device,
    batch_items: int = ITEMS_AT_ONCE,
    progress: Progress | None = None,
) -> Float[Tensor, "items width"]:
    """Return the score-ready vectors of some items, float32 on the CPU, in the order given."""
    vectors = torch.empty(len(item_rows), model.width)
    with _reading(model):
        for index, batch in catalogue_batches(reader, item_rows, batch_items=batch_items):
            _put(vectors, index, model.encode_items(batch.to(device)))
            if progress:
                progress(len(index))
    return vectors


def encode_plain(
    model: RecommenderModel,
    reader: ItemReader,
    item_rows: npt.NDArray[np.int64],
    *,
    device: torch.device,
    modalities: Sequence[str] = (),
) -> tuple[Float[Tensor, "items width"], dict[str, Float[Tensor, "items width"]]]:
    """Return some items' vectors as training compares them, and what some modalities alone give.

    Nothing is in them that validation chooses.  See :meth:`RecommenderModel.encode_alone`.
    """
    vectors = torch.empty(len(item_rows), model.width)
    alone = {name: torch.empty_like(vectors) for name in modalities}
    with _reading(model):
        for index, batch in catalogue_batches(reader, item_rows, batch_items=ITEMS_AT_ONCE):
            plain, found = model.encode_alone(batch.to(device), modalities)
            _put(vectors, index, plain)
            for name, own in found.items():
                _put(alone[name], index, own)
    return vectors, alone


def _put(vectors: Float[Tensor, "items width"], index: npt.NDArray[np.int64], found: Tensor) -> None:
    """Write what was found of some items to their places."""
    vectors[torch.from_numpy(index)] = found.float().cpu()


def _reading(model: RecommenderModel) -> evaluating:
    """Return the context in which a model reads items: sharded blocks go on training with what they put together here."""
    return evaluating(model, trains_on=bool(model.item_encoder.in_step))


def encode_histories(
    model: RecommenderModel,
    histories: Histories,
    events: RaggedArray,
    item_embeddings: Float[Tensor, "items width"],
    *,
    device: torch.device,
) -> Float[Tensor, "users interests width"]:
    """Return the score-ready vectors of users after the given events, float32 on the CPU.

    Args:
        model: the recommender.
        histories: the feed's interactions.
        events: row ``u`` holds the event positions of user ``u``'s history, oldest first; may be empty.
        item_embeddings: shape (items, width), vectors of the whole catalogue on ``device``.
        device: where to compute.
    """
    flat, lengths = events.values.astype(np.int64), events.lengths
    users = user_batch(
        histories,
        flat,
        lengths,
        item_positions=np.asarray(histories.item_rows[flat], dtype=np.int64),
        instants=ranks_within(np.asarray(histories.timestamps[flat]), lengths),
    )
    with evaluating(model):
        return model.encode_users(users.to(device), item_embeddings).vectors.float().cpu()


class ModelScorer:
    """Scores of the cases of a split over the whole catalogue, by the model; each history is encoded once.

    Args:
        model: the recommender.
        item_embeddings: shape (items, width), vectors of the whole catalogue.
        histories: the feed's interactions.
        cases: the questions.
        history_length: most recent events a history is cut to.
        device: where to compute.
        alone: by modality, shape (items, width): what it alone gives, where shares of it are still chosen; scores follow.
        signals: shape (items, 2), where the vectors are not calibrated yet; see :meth:`Scorer.calibrated`.
    """

    def __init__(
        self,
        model: RecommenderModel,
        item_embeddings: Float[Tensor, "items width"],
        histories: Histories,
        cases: Cases,
        *,
        history_length: int,
        device: torch.device,
        alone: Mapping[str, Float[Tensor, "items width"]] | None = None,
        signals: Float[Tensor, "items 2"] | None = None,
    ) -> None:
        self._model, self._histories, self._cases = model, histories, cases
        self._plain = self._items = item_embeddings.to(device)
        self._alone = {name: vectors.to(device) for name, vectors in (alone or {}).items()}
        self._shares: Mapping[str, float] = {}
        self._signals = None if signals is None else signals.to(device)
        self._length, self._device = history_length, device
        self._users = torch.empty(len(cases), 0, model.width)
        self._known = np.zeros(len(cases), dtype=bool)

    def scores(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases items"]:
        """Return the scores of some cases, best over the interests of each user."""
        users, repeats = self.case_vectors(cases), self.repeat_items(cases)
        had = (
            torch.from_numpy(np.repeat(np.arange(len(cases)), repeats.lengths)).to(self._device),
            torch.from_numpy(np.asarray(repeats.values, np.int64)).to(self._device),
        )
        with torch.inference_mode():
            return self._model.scorer.compare(users, self.item_vectors(slice(None)), had=had).cpu()

    def case_vectors(self, cases: npt.NDArray[np.int64]) -> Float[Tensor, "cases interests width"]:
        """Return the vectors of some cases."""
        items = self._mixed()
        if not self._known[cases].all():
            events = self._events(cases)
            users = encode_histories(self._model, self._histories, events, items, device=self._device)
            if not self._users.shape[1]:
                self._users = torch.empty(len(self._cases), *users.shape[1:])
            self._users[torch.from_numpy(cases)] = users
            self._known[cases] = True
        return self._users[torch.from_numpy(cases)].to(self._device)

    def item_vectors(self, rows: slice | Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Return the vectors of some items, calibrated as the scorer is now."""
        items = self._mixed()[rows]
        return items if self._signals is None else self._model.scorer.calibrated(items, self._signals[rows])

    def repeat_items(self, cases: npt.NDArray[np.int64]) -> RaggedArray:
        """Return the items of each case's history, which gain the repeat bonus."""
        events = self._events(cases)
        return RaggedArray(np.asarray(self._histories.item_rows[events.values]), events.offsets)

    def repeat_bonus(self) -> float:
        """Return the bonus."""
        return float(self._model.scorer.repeat_bonus)

    def _mixed(self) -> Float[Tensor, "items width"]:
        """Return the catalogue with the shares of modalities as they are now; histories are read anew when they change."""
        if self._alone and self._shares != self._model.late.chosen():
            self._shares = self._model.late.chosen()
            self._items = self._model.with_late(self._plain, self._alone)
            self._known[:] = False
        return self._items

    def _events(self, cases: npt.NDArray[np.int64]) -> RaggedArray:
        return self._cases.take(cases).histories(self._histories, length=self._length)
