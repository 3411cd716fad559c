"""What a preparation did with every row it was given: the content of ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

from data_tools.quarantine import Refusal
from mmrec.storage import read_json, write_json

REPORT = "report.json"
Status = Literal["prepared", "refused"]


@dataclass(frozen=True)
class Count:
    """Rows (or pictures) in, and what became of them: ``given`` is ``kept`` plus all of ``refused``.

    Args:
        given: rows read.
        kept: rows that are in the prepared feed.
        refused: rows that are not, by reason.
    """

    given: int
    kept: int
    refused: Mapping[str, int]

    def __post_init__(self) -> None:
        assert self.given == self.kept + sum(self.refused.values()), self

    @property
    def refused_share(self) -> float:
        """Share of the rows that were refused."""
        return sum(self.refused.values()) / self.given if self.given else 0.0


@dataclass(frozen=True)
class CaptionCount:
    """Captions of the items kept.

    Args:
        present: items with a caption.
        distinct: different captions.
        missing: item rows without any caption text, before items without content were refused.
        blank: item rows whose caption was only spaces, likewise.
        truncated: captions cut at ``max_caption_bytes``.
    """

    present: int
    distinct: int
    missing: int
    blank: int
    truncated: int


@dataclass(frozen=True)
class TimeCount:
    """Times of the interactions and publication dates.

    Args:
        source_unit: unit of the table.
        detected: False where the unit was declared.
        first: earliest timestamp kept, milliseconds or order.
        last: latest one.
        published_given: publication dates in the table.
        published_unreadable: those that could not be read.
        published_late: items that were chosen before they were published; they exist from their first interaction on.
    """

    source_unit: str
    detected: bool
    first: int | None
    last: int | None
    published_given: int
    published_unreadable: int
    published_late: int


@dataclass(frozen=True)
class PrepareReport:
    """Outcome of a preparation.

    Args:
        folder: the prepared feed.
        status: ``refused`` where too much was bad and no feed was written.
        items: rows of the items table.
        interactions: rows of the interactions table.
        pictures: pictures that items name or have.
        distinct_pictures: different pictures among those kept.
        users: users with an interaction.
        captions: captions of the items.
        times: units and times.
        max_bad: largest share of refusals allowed in each of the three.
        listed: the first refusals; all are in ``quarantine.parquet``.
        refusals: how many there are.
        unchanged: True where the feed was prepared already and nothing was done.
        reused_blocks: blocks of pictures taken over from a run that was killed.
    """

    folder: Path
    status: Status
    items: Count
    interactions: Count
    pictures: Count
    distinct_pictures: int
    users: int
    captions: CaptionCount
    times: TimeCount
    max_bad: float
    listed: tuple[Refusal, ...]
    refusals: int
    unchanged: bool = False
    reused_blocks: int = 0

    def record(self) -> dict[str, object]:
        """Return what ``report.json`` holds; the same feed gives the same bytes."""
        return {
            "status": self.status,
            "items": asdict(self.items),
            "interactions": asdict(self.interactions),
            "pictures": asdict(self.pictures),
            "distinct_pictures": self.distinct_pictures,
            "users": self.users,
            "captions": asdict(self.captions),
            "times": asdict(self.times),
            "max_bad": self.max_bad,
            "refusals": self.refusals,
            "listed": [refusal.record() for refusal in self.listed],
        }

    def save(self, folder: Path) -> None:
        """Write ``report.json``."""
        write_json(folder / REPORT, self.record())

    @classmethod
    def load(cls, folder: Path) -> PrepareReport:
        """Read the report of a prepared feed.

        Raises:
            ArtifactError: no report, or a damaged one.
        """
        record = cast("dict[str, dict[str, int]]", read_json(folder / REPORT))
        listed = cast("list[dict[str, object]]", record["listed"])
        return cls(
            folder=folder,
            status=cast("Status", record["status"]),
            items=_count(record["items"]),
            interactions=_count(record["interactions"]),
            pictures=_count(record["pictures"]),
            distinct_pictures=cast("int", record["distinct_pictures"]),
            users=cast("int", record["users"]),
            captions=CaptionCount(**record["captions"]),
            times=_times(cast("dict[str, object]", record["times"])),
            max_bad=cast("float", record["max_bad"]),
            listed=tuple(Refusal.from_record(entry) for entry in listed),
            refusals=cast("int", record["refusals"]),
        )


def _count(record: Mapping[str, object]) -> Count:
    return Count(cast("int", record["given"]), cast("int", record["kept"]), cast("dict[str, int]", record["refused"]))


def _times(record: Mapping[str, object]) -> TimeCount:
    return TimeCount(
        source_unit=str(record["source_unit"]),
        detected=bool(record["detected"]),
        first=cast("int | None", record["first"]),
        last=cast("int | None", record["last"]),
        published_given=cast("int", record["published_given"]),
        published_unreadable=cast("int", record["published_unreadable"]),
        published_late=cast("int", record["published_late"]),
    )
