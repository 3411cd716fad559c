"""A raw feed in, a prepared feed out: validated, decoded, divided; whole or absent.

The order of items is that of their table; users come in the order of their first appearance in the interactions.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from data_tools.captions import SEPARATOR, CaptionStore
from data_tools.feed_tables import find_table, open_table
from data_tools.identities import OnDuplicate
from data_tools.interactions import REQUIRED, Events, read_clock, read_interactions
from data_tools.items import ItemChoices, ItemSide, read_items
from data_tools.picture_files import IMAGES, PictureFinder
from data_tools.picture_store import DecodeSettings, PictureStore, Progress
from data_tools.prepare_report import CaptionCount, Count, PrepareReport, TimeCount
from data_tools.prepared_files import PREPARE_VERSION, Origin, write_prepared
from data_tools.quarantine import QUARANTINE, Quarantine
from data_tools.split_choices import SplitChoices
from data_tools.splits import write_split
from data_tools.tables import Source
from data_tools.timestamps import UNITS, Unit
from data_tools.work_folder import check_target, discard, tree_hash, work_folder
from mmrec import columns
from mmrec.errors import FeedError
from mmrec.feed.catalogue import MANIFEST, NEVER, NO_CAPTION
from mmrec.feed.splits import KINDS, Kind
from mmrec.preprocessing.pictures import MAX_PIXELS
from mmrec.storage import atomic_folder, content_hash, file_hash, read_json

_SMALLEST_CAPTION: Final = 4  # bytes of the longest UTF-8 character


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The split that a preparation writes and makes the feed's default.

    Args:
        kind: how to divide; None: ``global_time`` where timestamps are real, else ``leave_last_out``.
        name: its name; None: the kind.
        choices: shares, times, seeds.
    """

    kind: Kind | None = None
    name: str | None = None
    choices: SplitChoices = SplitChoices()


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What the user may choose.

    Args:
        caption: caption columns, joined in this order; None: the column ``caption`` where there is one.
        caption_separator: between two of them; its full stop is left out after a field that ends a sentence.
        max_caption_bytes: longer captions are cut, and counted; None keeps all.
        images: folder of pictures; None: ``images`` in the feed.
        image_side: longest side of a stored picture.
        max_pixels: larger pictures are refused.
        timestamp_unit: ``s``, ``ms``, ``iso`` or ``order``; None: detected where it is certain.
        max_bad: largest share of refused items, interactions and pictures, each on its own.
        keep_empty: whether items with neither caption nor picture stay.
        on_duplicate: ``error`` or ``last``: what to do with one item id of two contents.
        workers: processes that decode; None: one a core.
        block_size: pictures decoded between two points from which a killed run can go on.
        split: the default split; None writes none.
    """

    caption: tuple[str, ...] | None = None
    caption_separator: str = SEPARATOR
    max_caption_bytes: int | None = None
    images: Path | None = None
    image_side: int = 224
    max_pixels: int = MAX_PIXELS
    timestamp_unit: Unit | None = None
    max_bad: float = 0.05
    keep_empty: bool = False
    on_duplicate: OnDuplicate = "error"
    workers: int | None = None
    block_size: int = 64
    split: SplitPlan | None = SplitPlan()

    def __post_init__(self) -> None:
        checks = {
            "image_side of at least 1": self.image_side >= 1,
            "max_pixels of at least 1": self.max_pixels >= 1,
            "max_bad between 0 and 1": 0 <= self.max_bad <= 1,
            "at least 1 worker": self.workers is None or self.workers >= 1,
            "block_size of at least 1": self.block_size >= 1,
            "max_caption_bytes of at least 4": (self.max_caption_bytes or _SMALLEST_CAPTION) >= _SMALLEST_CAPTION,
            "timestamp_unit s, ms, iso or order": self.timestamp_unit in (None, *UNITS),
            "a known kind of split": self.split is None or self.split.kind in (None, *KINDS),
        }
        for expected, holds in checks.items():
            if not holds:
                raise FeedError(expected, where="the options of prepare")

    def parameters(self) -> dict[str, object]:
        """Return, as JSON values, every choice that changes what is prepared."""
        record = {name: value for name, value in asdict(self).items() if name not in ("workers", "block_size")}
        record["images"] = None if self.images is None else str(self.images)
        return dict(json.loads(json.dumps(record)))


def silent(stage: str, done: int, total: int) -> None:
    """Show no progress."""


def prepare(
    feed: Path, out: Path, *, options: PrepareOptions = PrepareOptions(), progress: Progress = silent
) -> PrepareReport:
    """Prepare the feed in folder ``feed`` as folder ``out``.

    Nothing is done where ``out`` was prepared from the same feed with the same choices.  A run that was killed is
    taken up again.  ``out`` appears whole or not at all.

    Raises:
        FeedError: the feed cannot be used; where too many rows were bad, the report is written nevertheless.
    """
    check_target(out)
    images = options.images or feed / IMAGES
    items = open_table(find_table(feed, "items"), required=[columns.ITEM_ID])
    interactions = open_table(find_table(feed, "interactions"), required=REQUIRED)
    origin = _origin(feed, images, items, interactions, skip=out)
    fingerprint = content_hash(str(PREPARE_VERSION), origin.text(), json.dumps(options.parameters()))
    with work_folder(out, _work_key(origin, options)) as work:
        if _is_unchanged(out, fingerprint):
            report = replace(PrepareReport.load(out), unchanged=True)
        else:
            run = _Run(out, work, options, replace(origin, fingerprint=fingerprint), progress)
            report = run.prepare(items, interactions, PictureFinder(feed, images))
        discard(out)
    return report


def _origin(feed: Path, images: Path, items: Source, interactions: Source, *, skip: Path) -> Origin:
    tables = {source.path.name: file_hash(source.path) for source in (items, interactions)}
    roots = (feed,) if images == feed / IMAGES else (feed, images)
    return Origin(tables=tables, tree=tree_hash(roots, skip=skip, tables=frozenset(tables)))


def _work_key(origin: Origin, options: PrepareOptions) -> str:
    """Name the work folder by all that decides which pictures lie in which block, and how they look."""
    choices = (options.image_side, options.max_pixels, options.block_size, options.on_duplicate, str(options.images))
    return content_hash(str(PREPARE_VERSION), origin.text(), repr(choices))


def _is_unchanged(out: Path, fingerprint: str) -> bool:
    return (out / MANIFEST).is_file() and read_json(out / MANIFEST).get("fingerprint") == fingerprint


@dataclass(frozen=True)
class _Run:
    """One preparation."""

    out: Path
    work: Path
    options: PrepareOptions
    origin: Origin
    progress: Progress

    def prepare(self, items: Source, interactions: Source, finder: PictureFinder) -> PrepareReport:
        """Read everything, judge it, write it."""
        clock = read_clock(interactions, self.options.timestamp_unit)
        with Quarantine(self.work / QUARANTINE) as quarantine:
            side = self._read_items(items, finder, quarantine)
            events = read_interactions(interactions, side.items.ids, clock, quarantine, progress=self.progress)
        report = self._report(side, events, quarantine)
        self._judge(report, items, interactions)
        self._write(report, side, events, items, interactions)
        return report

    def _read_items(self, source: Source, finder: PictureFinder, quarantine: Quarantine) -> ItemSide:
        options = self.options
        choices = ItemChoices(
            options.caption,
            options.caption_separator,
            options.on_duplicate,
            options.keep_empty,
            options.timestamp_unit,
        )
        workers = options.workers or os.cpu_count() or 1
        settings = DecodeSettings(options.image_side, options.max_pixels, workers, options.block_size)
        return read_items(
            source,
            choices,
            captions=CaptionStore(self.work, options.max_caption_bytes),
            pictures=PictureStore(self.work, settings),
            finder=finder,
            quarantine=quarantine,
            progress=self.progress,
        )

    def _report(self, side: ItemSide, events: Events, quarantine: Quarantine) -> PrepareReport:
        first_seen, published = side.first_seen(events.item_rows, events.timestamps), side.published
        some = len(events) > 0
        return PrepareReport(
            folder=self.out,
            status="prepared",
            items=Count(side.items.given, len(side.items), quarantine.counts("items")),
            interactions=Count(events.given, len(events), quarantine.counts("interactions")),
            pictures=Count(side.pictures.given, len(side.item_images.values), quarantine.counts("pictures")),
            distinct_pictures=len(side.pictures),
            users=len(events.user_ids),
            captions=CaptionCount(
                present=int(np.count_nonzero(side.caption_rows != NO_CAPTION)),
                distinct=len(side.captions),
                missing=side.captions.missing,
                blank=side.captions.blank,
                truncated=side.captions.truncated,
            ),
            times=TimeCount(
                source_unit=events.clock.unit,
                detected=events.clock.detected,
                first=int(events.timestamps.min()) if some else None,
                last=int(events.timestamps.max()) if some else None,
                published_given=published.given,
                published_unreadable=published.unreadable,
                published_late=int(np.count_nonzero((published.moments != NEVER) & (first_seen < published.moments))),
            ),
            max_bad=self.options.max_bad,
            listed=tuple(quarantine.listing),
            refusals=quarantine.total(),
            reused_blocks=side.pictures.reused_blocks,
        )

    def _judge(self, report: PrepareReport, items: Source, interactions: Source) -> None:
        """Refuse a feed of which too little is left."""
        if not report.items.kept:
            self._refuse(report, "items that can be used", got="none", source=items)
        if not report.interactions.kept:
            self._refuse(report, "interactions that can be used", got="none", source=interactions)
        if report.times.first == report.times.last:
            got = f"all {report.interactions.kept:,} at {report.times.first}"
            self._refuse(report, "interactions at different times", got=got, source=interactions)
        shares = {"items": report.items, "interactions": report.interactions, "pictures": report.pictures}
        for name, count in shares.items():
            if count.refused_share > self.options.max_bad:
                got = f"{count.refused_share:.1%} ({_listed(count.refused)})"
                source = interactions if name == "interactions" else items
                self._refuse(report, f"at most {self.options.max_bad:.1%} of {name} refused", got=got, source=source)

    def _refuse(self, report: PrepareReport, expected: str, *, got: str, source: Source) -> NoReturn:
        """Write the report, never beside a feed that was good, and end."""
        kept = (self.out / MANIFEST).exists()
        folder = self.out.with_name(f"{self.out.name}.refused") if kept else self.out
        with atomic_folder(folder) as partial:
            replace(report, status="refused").save(partial)
            shutil.copyfile(self.work / QUARANTINE, partial / QUARANTINE)
        fix = f"See {folder / QUARANTINE} for every refused row; mend the feed, or allow more with --max-bad."
        raise FeedError(expected, got=got, where=str(source.path), fix=fix)

    def _write(
        self, report: PrepareReport, side: ItemSide, events: Events, items: Source, interactions: Source
    ) -> None:
        self.progress("writing", 0, 1)
        plan = self.options.split
        kind: Kind = "global_time" if events.has_time else "leave_last_out"
        kind = (plan.kind if plan else None) or kind
        name = "" if plan is None else plan.name or kind
        with atomic_folder(self.out) as partial:
            write_prepared(
                partial,
                side,
                events,
                items,
                interactions,
                origin=self.origin,
                parameters=self.options.parameters(),
                image_side=self.options.image_side,
                default_split=name,
            )
            report.save(partial)
            shutil.copyfile(self.work / QUARANTINE, partial / QUARANTINE)
            if plan is not None:
                write_split(partial, name=name, kind=kind, choices=plan.choices)
        self.progress("writing", 1, 1)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
