"""The façade: a trained run, ready to score, recommend and embed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mmrec import columns
from mmrec.assembly import Assembly, assemble, choose_device
from mmrec.config_file import load_config
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import ArtifactError, RequestError
from mmrec.feed.catalogue import MANIFEST
from mmrec.feed.ids import Ids
from mmrec.inference.embedding_table import (
    EmbeddingTable,
    filling,
    item_keys,
    remove_other_models,
    reuse,
    saved_tables,
    saved_vectors,
)
from mmrec.inference.encoding import Progress, encode_catalogue
from mmrec.inference.model_hash import hash_weights, in_every_format, in_format
from mmrec.inference.references import Reference, reference_name
from mmrec.inference.scoring import Request, RequestUsers, Scored, Scoring
from mmrec.inference.vectors import ItemVectors
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.run_folder import RunFolder
from mmrec.storage import content_hash
from mmrec.training.checkpoint import MODEL, best_checkpoint, read_checkpoint
from mmrec.training.snapshot import load_model_tensors

Pieces = Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]
"""Catalogue rows and their score-ready vectors, some at a time."""
EncodeRows = Callable[[npt.NDArray[np.int64], Progress], Pieces]
"""Encodes catalogue rows, in this process or elsewhere."""


class Recommender:
    """A trained model on a feed.

    Example:
        >>> from mmrec import Post, Recommender
        >>> recommender = Recommender.load("runs/hm")  # doctest: +SKIP
        >>> recommender.score(  # doctest: +SKIP
        ...     history=["0158340001", Post(caption="red scarf")],
        ...     candidates=[Post(image="new.jpg"), "0867966009"],
        ... )

    Args:
        run: the run folder.
        assembly: the model on its feed.
        weights_hash: hash of the weights and of the preprocessing.

    Attributes:
        model_hash: hash of all that decides a vector but the item: weights, preprocessing, number format.
        items_encoded: items that had to be encoded for the catalogue's vectors.
    """

    def __init__(self, run: RunFolder, assembly: Assembly, *, weights_hash: str) -> None:
        self.run, self.assembly, self.weights_hash = run, assembly, weights_hash
        self.model_hash = in_format(weights_hash, assembly.compute_dtype)
        self.items_encoded = 0
        config = assembly.config
        self.vectors = ItemVectors(
            assembly.model,
            assembly.catalogue,
            assembly.reader,
            words=assembly.words,
            pixels=assembly.pixels,
            vocabulary=assembly.vocabulary,
            trunks=assembly.trunks,
            picture_side=int(str(assembly.catalogue.manifest.get("image_side", 224))),
            max_images=config.train.max_images,
            device=assembly.device,
            table=self._saved_table(),
        )
        self.scoring = Scoring(
            assembly.model,
            self.vectors,
            assembly.histories,
            history_length=config.train.history_length,
            device=assembly.device,
        )

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        feed: str | Path | None = None,
        device: str = "auto",
        fill_caches: bool = True,
        compute_dtype: ComputeDtype = "float32",
        notify: Notify = ignore,
        meter: Meter = silent_meter,
    ) -> Recommender:
        """Load the best checkpoint of a run.

        Args:
            run: run folder.
            feed: prepared feed to run on; by default the one the run was trained on.
            device: cpu, cuda, ... or auto.
            fill_caches: run trunks over what their caches lack; otherwise such a trunk runs where an item is read.
            compute_dtype: number format in which transformers over captions and pictures run: bfloat16 is faster on what
                multiplies it natively, such as a processor with AMX; vectors differ in the third digit.
            notify: told what is about to be done.
            meter: shows progress.

        Raises:
            ArtifactError: not a run, no whole checkpoint, or weights that are not the run's.
            ConfigError: an encoder that does not run in bfloat16.
            FeedError: the feed is gone or is no prepared feed.
        """
        folder = RunFolder(Path(run))
        about = folder.read_about()
        place = Path(feed) if feed is not None else Path(str(about["feed"]))
        if not (place / MANIFEST).is_file():
            raise ArtifactError(
                "the prepared feed of the run",
                got="no such folder",
                where=str(place),
                fix="Give its new place: --feed.",
            )
        config = load_config(folder.config)
        ids = Ids.load(folder.ids)
        path = best_checkpoint(folder.checkpoints)
        checkpoint = read_checkpoint(path)
        assembly = assemble(
            config,
            place,
            ids,
            device=choose_device(device),
            event_names=cast("list[str] | None", about.get("event_names")),
            preprocessing=folder.preprocessing,
            fill_caches=fill_caches,
            compute_dtype=compute_dtype,
            notify=notify,
            meter=meter,
        )
        if checkpoint.state["base"] != assembly.bases:
            raise ArtifactError(
                "the pretrained weights that the run was trained on",
                got="others",
                where=str(path),
                fix="Restore those weights, or train again.",
            )
        load_model_tensors(assembly.model, checkpoint.tensors[MODEL], where=str(path))
        assembly.model.eval()
        return cls(folder, assembly, weights_hash=hash_weights(assembly, checkpoint.tensors[MODEL]))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.assembly.device

    @property
    def has_bias(self) -> bool:
        """Whether vectors end in a bias coordinate."""
        return self.assembly.model.width > self.assembly.model.dim

    @property
    def repeat_bonus(self) -> float:
        """What an item's score gains where the user's history holds it."""
        return float(self.assembly.model.scorer.repeat_bonus)

    def item_embeddings(
        self,
        *,
        meter: Meter = silent_meter,
        earlier: Sequence[EmbeddingTable] = (),
        encode: EncodeRows | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the score-ready vectors of the whole catalogue, shape (items, width); each item encoded once.

        The vectors are kept beside the run; of another feed's, those of unchanged items are taken.

        Args:
            meter: shows progress.
            earlier: vectors of this model that lie elsewhere.
            encode: what encodes the others; by default this process.
        """
        if self.vectors.table is None:
            keys, encode = item_keys(self.assembly), encode or self.encode_rows
            tables = chain(earlier, saved_tables(self.run.embeddings, model_hash=self.model_hash))
            folder, width = self.run.embeddings / self.catalogue_hash, self.assembly.model.width
            with filling(folder, keys, width=width, model_hash=self.model_hash) as vectors:
                missing = reuse(keys, tables, vectors)
                with meter("catalogue") as advance:
                    for rows, piece in encode(missing, advance):
                        vectors[rows] = piece
            self.items_encoded = len(missing)
            remove_other_models(self.run.embeddings, model_hashes=in_every_format(self.weights_hash))
            self.vectors.table = self._saved_table()
        assert self.vectors.table is not None
        return self.vectors.table

    def encode_rows(self, rows: npt.NDArray[np.int64], progress: Progress) -> Pieces:
        """Run the model over some items of the catalogue in this process."""
        model, reader = self.assembly.model, self.assembly.reader
        yield rows, encode_catalogue(model, reader, rows, device=self.device, progress=progress).numpy()

    @cached_property
    def catalogue_tensor(self) -> Float[Tensor, "items width"]:
        """The catalogue's vectors on the device."""
        return torch.from_numpy(np.array(self.item_embeddings())).to(self.device)

    def embed(self, references: Sequence[Reference]) -> npt.NDArray[np.float32]:
        """Return score-ready vectors of items and new posts, shape (references, width).

        Raises:
            RequestError: one of them cannot be read.
        """
        resolved = self.vectors.resolve(references)
        for reference in resolved.references:
            if reference.error_message is not None:
                raise RequestError("usable posts", got=reference.error_message)
        return np.asarray(resolved.vectors.numpy()[resolved.positions])

    def score(
        self,
        *,
        candidates: Sequence[Reference],
        history: Sequence[Reference] | None = None,
        user_id: str | int | None = None,
    ) -> pd.DataFrame:
        """Score candidates for one user, in the order given.

        Args:
            candidates: item ids and/or new posts.
            history: items and posts the user chose, oldest first; may be empty; or
            user_id: a user the feed knows.

        Returns:
            Columns candidate, score, rank, present, error_message; a candidate that cannot be read has an error, no
            score, and rank 0.

        Raises:
            RequestError: both or neither of history and user_id, an unknown user, or a history that cannot be read.
        """
        request = Request(request_id="score", candidates=candidates, user_id=user_id, history=history)
        scored = next(iter(self.scoring.score([request])))
        if scored.request_error is not None:
            raise RequestError("a usable request", got=scored.request_error)
        return pd.DataFrame(scored_columns(scored)).drop(columns=[columns.REQUEST_ID])

    def recommend(
        self,
        *,
        history: Sequence[Reference] | None = None,
        user_id: str | int | None = None,
        k: int = 20,
        new_only: bool = False,
    ) -> pd.DataFrame:
        """Return the best items of the catalogue for one user: columns item_id, score, rank.

        Args:
            history: items and posts the user chose, oldest first; or
            user_id: a user the feed knows.
            k: items wanted; all of them where the catalogue is smaller.
            new_only: leave out the items of the history.

        Raises:
            RequestError: both or neither of history and user_id, an unknown user, or a history that cannot be read.
        """
        request = Request(request_id="recommend", candidates=[], user_id=user_id, history=history)
        users = self.scoring.users([request])
        if users.error_messages[0] is not None:
            raise RequestError("a usable request", got=users.error_messages[0])
        rows, scores = self.top_items(users, k=k, new_only=new_only)
        kept = rows[0] >= 0
        return pd.DataFrame(
            {
                columns.ITEM_ID: self.assembly.catalogue.external_ids(rows[0][kept]),
                columns.SCORE: scores[0][kept],
                columns.RANK: np.arange(1, int(kept.sum()) + 1),
            }
        )

    def top_items(
        self,
        users: RequestUsers,
        *,
        k: int,
        new_only: bool = False,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the k best item rows and scores of each user, best first; row -1 where there are fewer.

        Args:
            users: who asks, as ``scoring.users`` returns them.
            k: items wanted.
            new_only: leave out the items of each user's history.
        """
        scores = self.scoring.compare(users, self.catalogue_tensor)
        for index, rows in enumerate(users.seen if new_only else []):
            scores[index, torch.from_numpy(rows).to(self.device)] = -torch.inf
        best = scores.topk(min(k, scores.shape[1]), dim=1)
        values = best.values.cpu().numpy()
        return np.where(np.isneginf(values), -1, best.indices.cpu().numpy()), values

    @cached_property
    def catalogue_hash(self) -> str:
        """Hash of all that decides the catalogue's vectors: the model, the feed, vectors made elsewhere, attributes."""
        given = [built.table.hashes.tobytes() for built in self.assembly.encoders.values() if built.table]
        return content_hash(self.model_hash, self.assembly.catalogue.feed_hash, *given)

    def _saved_table(self) -> npt.NDArray[np.float32] | None:
        return saved_vectors(self.run.embeddings / self.catalogue_hash)


def scored_columns(scored: Scored) -> dict[str, list[object]]:
    """Return an answer as columns of a table, one row a candidate."""
    count = len(scored.candidates)
    return {
        columns.REQUEST_ID: [scored.request_id] * count,
        columns.CANDIDATE: [reference_name(reference, i) for i, reference in enumerate(scored.candidates)],
        columns.SCORE: [None if np.isnan(score) else float(score) for score in scored.scores],
        columns.RANK: [int(rank) for rank in scored.ranks],
        columns.PRESENT: ["+".join(present) for present in scored.present],
        columns.ERROR_MESSAGE: list(scored.error_messages),
    }
