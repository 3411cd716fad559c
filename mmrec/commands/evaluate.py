"""Run in, honest figures out: the model, what it is measured against, and what each modality is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mmrec.assembly import Assembly, build_reader, split_fingerprint
from mmrec.build import BuiltEncoder, build_encoders
from mmrec.contents import read_content
from mmrec.encoders.base import ContentEncoder, mean_tokens
from mmrec.encoders.compute import ComputeDtype
from mmrec.errors import ArtifactError
from mmrec.evaluation.baselines import standard_baselines
from mmrec.evaluation.comparison import REPORT_JSON, Comparison, compare
from mmrec.evaluation.crossmodal import (
    FROZEN,
    CrossModal,
    choose_questions,
    crossmodal_tables,
    frozen_scores,
    space_scores,
    unseen_items,
)
from mmrec.evaluation.evaluate import MODEL, evaluate
from mmrec.evaluation.examples import example_users
from mmrec.evaluation.knockout import ScorerFactory, shuffled_pictures
from mmrec.evaluation.ranking import CaseScorer
from mmrec.evaluation.report import write_report
from mmrec.evaluation.results import EvaluationReport
from mmrec.feed.ids import Ids
from mmrec.feed.items import ItemReader
from mmrec.feed.splits import Cases, Part, Split
from mmrec.inference.encoding import ModelScorer, encode_catalogue
from mmrec.inference.recommender import Recommender
from mmrec.notices import Meter, Notify, ignore, silent_meter
from mmrec.run_folder import RunFolder

KNOCKED_OUT = (("drop_caption", "text"), ("drop_picture", "image"), ("drop_attributes", "attributes"))
"""Knock-outs that take a modality away, and which."""
_ROWS = 512


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, and where its page is.

    Args:
        report: the figures.
        page: report.html.
    """

    report: EvaluationReport
    page: Path


def evaluate_run(
    run: Path,
    *,
    part: Part = "validation",
    feed: Path | None = None,
    device: str = "auto",
    compute_dtype: ComputeDtype = "float32",
    knockouts: bool = True,
    extra_scorers: Mapping[str, CaseScorer] | None = None,
    notify: Notify = ignore,
    meter: Meter = silent_meter,
) -> Evaluated:
    """Rank the catalogue for every case of a part of the run's split, and write the report into the run.

    Args:
        run: run folder.
        part: validation or test.
        feed: prepared feed, by default the run's own.
        device: where to compute.
        compute_dtype: number format in which encoders run, see :meth:`Recommender.load`.
        knockouts: measure what each modality is worth.
        extra_scorers: further rows of the table, by name.
        notify: told what is about to be done.
        meter: shows progress.

    Raises:
        ArtifactError: not a run, or the feed is not the one it was trained on.
        FeedError: the part has no case.
    """
    recommender = Recommender.load(
        run, feed=feed, device=device, compute_dtype=compute_dtype, notify=notify, meter=meter
    )
    assembly = recommender.assembly
    about = recommender.run.read_about()
    if about["feed_hash"] != assembly.catalogue.feed_hash:
        raise ArtifactError(
            "the prepared feed that the run was trained on",
            got="another",
            where=str(assembly.catalogue.folder),
            fix="Evaluate on the feed of the run, or train on this one.",
        )
    split = Split.load(assembly.catalogue.folder, str(about["split"]))
    if about.get("split_hash", split_fingerprint(split)) != split_fingerprint(split):
        raise ArtifactError(
            "the split that the run was trained on",
            got=f"another of the name {split.name!r}",
            where=str(assembly.catalogue.folder),
            fix="Train again: this split may ask what the run has seen.",
        )
    cases = split.part(part)
    recommender.item_embeddings(meter=meter)
    model = model_scorer(recommender, cases)
    vectors, present = content_vectors(assembly, notify=notify, meter=meter)
    scorers: dict[str, CaseScorer] = {MODEL: model}
    scorers |= standard_baselines(cases, assembly.histories, split.train_events, vectors=vectors, present=present)
    scorers |= extra_scorers or {}
    with meter("captions against pictures"):
        crossmodal = _crossmodal(assembly, split, cases, vectors, present)
    with meter("ranking"):
        report = evaluate(
            scorers,
            cases,
            assembly.catalogue,
            assembly.histories,
            split,
            part=part,
            knockouts=_knockouts(assembly, cases) if knockouts else None,
            crossmodal=crossmodal,
        )
    examples = example_users(report.ranks[report.headline.name], cases, assembly.histories, assembly.catalogue)
    page = write_report(
        report,
        examples,
        read_metrics(recommender.run),
        recommender.run.evaluation(part, compute_dtype),
        title=f"{recommender.run.path.name}: {split.name}, {part}"
        + ("" if compute_dtype == "float32" else f", {compute_dtype}"),
    )
    return Evaluated(report, page)


def compare_runs(run: Path, other: Path, *, part: Part, compute_dtype: ComputeDtype = "float32") -> Comparison:
    """Compare two evaluated runs case by case.

    Args:
        run: run folder.
        other: another, or the same: its report in float32.
        part: of the split.
        compute_dtype: number format of the first one's report.

    Raises:
        ArtifactError: one of them was not evaluated on this part, or their cases differ.
    """
    folders = [RunFolder(run).evaluation(part, compute_dtype), RunFolder(other).evaluation(part)]
    for folder, path in zip(folders, (run, other), strict=True):
        if not (folder / REPORT_JSON).is_file():
            raise ArtifactError(
                "an evaluated run",
                got="no report",
                where=str(folder),
                fix=f"Run: mmrec evaluate {path} --split {part}",
            )
    return compare(folders[0], folders[1])


def read_metrics(run: RunFolder) -> list[dict[str, object]]:
    """Return what training logged, one record a step."""
    if not run.metrics.is_file():
        return []
    return [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines() if line.strip()]


def model_scorer(recommender: Recommender, cases: Cases) -> ModelScorer:
    """Return a trained model as a scorer of cases."""
    recommender.item_embeddings()
    return _scorer(recommender.assembly, recommender.catalogue_tensor, cases)


def _scorer(assembly: Assembly, item_embeddings: torch.Tensor, cases: Cases) -> ModelScorer:
    return ModelScorer(
        assembly.model,
        item_embeddings,
        assembly.histories,
        cases,
        history_length=assembly.config.train.history_length,
        device=assembly.device,
    )


def _knockouts(assembly: Assembly, cases: Cases) -> dict[str, ScorerFactory]:
    """Return the knock-outs that mean something for the model: it needs something else to stand on."""
    modalities = assembly.reader.modalities
    made: dict[str, ItemReader] = {}
    for name, modality in KNOCKED_OUT:
        if modality in modalities and len(modalities) > 1:
            made[name] = ItemReader({key: entry for key, entry in modalities.items() if key != modality})
    if "image" in modalities:
        image = modalities["image"]
        source = shuffled_pictures(image.links.lengths > 0, seed=0)
        made["shuffle_pictures"] = ItemReader({**modalities, "image": replace(image, links=image.links.gather(source))})

    def scorer(reader: ItemReader) -> CaseScorer:
        vectors = encode_catalogue(assembly.model, reader, assembly.all_rows, device=assembly.device)
        return _scorer(assembly, vectors, cases)

    return {name: partial(scorer, reader) for name, reader in made.items()}


def _crossmodal(
    assembly: Assembly,
    split: Split,
    cases: Cases,
    vectors: Mapping[str, torch.Tensor],
    present: Mapping[str, torch.Tensor],
) -> CrossModal | None:
    """Let captions and pictures find each other, as posts that nobody has seen; None where there is nothing to ask."""
    if not {"text", "image"} <= vectors.keys():
        return None
    both = np.flatnonzero((present["text"] & present["image"]).numpy())
    questions = choose_questions(both, unseen_items(assembly.catalogue, assembly.histories, split, cases))
    if questions is None:
        return None
    alone: dict[str, torch.Tensor] = {}
    contents: dict[str, npt.NDArray[np.int64]] = {}
    for name in ("text", "image"):
        modality = assembly.reader.modalities[name]
        reader = ItemReader({name: modality})
        embeddings = encode_catalogue(assembly.model, reader, questions.rows, device=assembly.device)
        alone[name] = assembly.model.scorer.content(embeddings)
        contents[name] = np.asarray(modality.links.values[modality.links.offsets[questions.rows]], dtype=np.int64)
    scores = {
        MODEL: space_scores(alone["text"], alone["image"]),
        FROZEN: frozen_scores(vectors["text"], vectors["image"], questions),
    }
    return crossmodal_tables(scores, questions, captions=contents["text"], pictures=contents["image"])


def content_vectors(
    assembly: Assembly, *, notify: Notify, meter: Meter
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the mean token vector of every item from the pretrained encoders as they were before training, by modality.

    Returns:
        Vectors, each of shape (items, dim), and presence, each of shape (items,).
    """
    catalogue, config = assembly.catalogue, assembly.config
    names = [name for name, built in assembly.encoders.items() if built.tuning is not None]
    if not names:
        return {}, {}
    content = config.model_copy(update={"encoders": {name: config.encoders[name] for name in names}})
    nobody = Ids(np.zeros(0, dtype=object), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    encoders = build_encoders(content, catalogue, ids=nobody, frozen=True)
    reader = build_reader(content, catalogue, encoders, nobody, device=assembly.device, notify=notify, meter=meter)
    vectors, present = {}, {}
    for name in names:
        vectors[name], present[name] = _item_means(reader, name, encoders[name], assembly.device)
    return vectors, present


@torch.inference_mode()
def _item_means(
    reader: ItemReader, name: str, built: BuiltEncoder, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    modality = reader.modalities[name]
    num_items = len(modality.links)
    encoder = built.module
    assert isinstance(encoder, ContentEncoder)
    encoder_module = built.module.eval()
    total = torch.zeros(num_items, encoder.dim)
    for start in range(0, num_items, _ROWS):
        rows: npt.NDArray[np.int64] = np.arange(start, min(start + _ROWS, num_items))
        parts = ItemReader({name: modality}).read(rows).parts.get(name)
        if parts is None:
            continue
        means = mean_tokens(encoder_module(read_content(parts.content.to(device)))).cpu()
        total.index_add_(0, parts.item_index + start, means[parts.content_index])
    lengths = torch.from_numpy(modality.links.lengths)
    return total / lengths.clamp(min=1).unsqueeze(1), lengths > 0
