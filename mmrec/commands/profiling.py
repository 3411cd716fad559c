"""A training that is watched: which parts of a model make which section, and what stands beside the times."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mmrec.assembly import Assembly
from mmrec.commands.encoding_work import WorkLog
from mmrec.contents import Content, StoredContent
from mmrec.feed.items import ContentSource, ItemReader
from mmrec.model.item_encoder import ITEM_ID
from mmrec.model.recommender import RecommenderModel
from mmrec.storage import write_json
from mmrec.training.operations import matrix_peak
from mmrec.training.precision import is_narrow
from mmrec.training.profile import Profile
from mmrec.training.profiler import NoProfiler, Profiler
from mmrec.training.sections import open_stopwatch
from mmrec.training.step_profiler import StepProfiler

COLLATION = "loader: collation"
OnProfile = Callable[[Profile], None]
"""Called once with the profile of a training that has ended or was stopped by Ctrl-C."""


@contextmanager
def profiled(on_profile: OnProfile | None, assembly: Assembly, work: WorkLog, path: Path) -> Iterator[Profiler]:
    """Time a training and write down where its time went, also where Ctrl-C stops it.

    Args:
        on_profile: told the profile; None times nothing.
        assembly: what is trained.
        work: what its batches ask for.
        path: JSON file to write.
    """
    if on_profile is None:
        yield NoProfiler()
        return
    if assembly.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(assembly.device)
    profiler = StepProfiler(open_stopwatch(assembly.device))
    watch_model(assembly.model, profiler)
    try:
        yield profiler
    except KeyboardInterrupt:
        on_profile(_finish(profiler, assembly, work, path))
        raise
    finally:
        profiler.close()
    on_profile(_finish(profiler, assembly, work, path))


def watch_model(model: RecommenderModel, profiler: StepProfiler) -> None:
    """Time every encoder, fusion with what prepares its tokens, the item id and the user encoder."""
    items = model.item_encoder
    for name, encoder in items.encoders.items():
        profiler.watch(encoder, "item id" if name == ITEM_ID else f"{name} encoder")
    further = {"item id": (items.id_projection, items.id_gate), "fusion": (items.assembler,)}
    for name, modules in further.items():
        for module in modules:
            if module is not None:
                profiler.watch(module, name, counted=False)
    for name, part in {"fusion": items.fusion, "user encoder": model.user_encoder}.items():
        if isinstance(part, nn.Module):
            profiler.watch(part, name)
    profiler.watch(model._habits, "user encoder", counted=False)


def watch_reader(reader: ItemReader, profiler: Profiler) -> ItemReader:
    """Return a reader that times how long each modality's contents take to read, wherever that is done."""
    return ItemReader(
        {
            name: replace(
                modality, source=_WatchedSource(modality.source, partial(profiler.loading, f"loader: {name} contents"))
            )
            for name, modality in reader.modalities.items()
        }
    )


@dataclass(frozen=True)
class _WatchedSource:
    """A source whose reads are timed."""

    source: ContentSource
    watch: Callable[[], AbstractContextManager[object]]

    def gather(self, rows: npt.NDArray[np.int64]) -> Content | StoredContent:
        """Return the contents of the given rows."""
        with self.watch():
            return self.source.gather(rows)


def _finish(profiler: StepProfiler, assembly: Assembly, work: WorkLog, path: Path) -> Profile:
    """Stop timing, add what stands beside the times, and write it all down."""
    profile, device = profiler.finish(), assembly.device
    figures = work.figures() | _peak_memory()
    if device.type == "cuda":
        figures["device_peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(device))
    dtype = torch.bfloat16 if is_narrow(assembly.config.train.precision, device) else torch.float32
    if "operations_per_second" in profile.figures:
        peak = matrix_peak(device, dtype=dtype)
        figures["matrix_peak_operations_per_second"] = peak
        figures["matrix_peak_share"] = profile.figures["operations_per_second"] / peak
    about = {"device": str(device), "precision": str(dtype).removeprefix("torch.")}
    if device.type == "cuda":
        about["device"] += f" ({torch.cuda.get_device_name(device)})"
    profile = profile.with_figures(figures, about)
    write_json(path, profile.to_dict())
    return profile


def _peak_memory() -> dict[str, float]:
    """Return the most memory that this process has ever had, where the system tells."""
    if sys.platform == "win32":
        return {}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}


def figure_rows(profile: Profile) -> list[list[object]]:
    """Return what stands beside the times, as rows of words and values for a terminal."""
    figures = profile.figures
    rows: list[list[object]] = [
        ["wall time", f"{profile.seconds:,.1f} s, {profile.steps:,} steps on {profile.about.get('device')}"]
    ]
    rows.append(["targets per second", f"{figures['targets_per_second']:,.0f} (validation and the like left out)"])
    named, distinct = figures["items_named"], figures["items_distinct"]
    rows.append(["posts named / distinct", f"{named:,.0f} / {distinct:,.0f} ({named / max(distinct, 1):.1f})"])
    for name in [key.removesuffix("_contents") for key in figures if key.endswith("_contents")]:
        contents = f"{figures[f'{name}_contents']:,.0f}, {figures[f'{name}_cache_hit_share']:.1%} trunk cache hits"
        padding = figures.get(f"{name}_padding_share")
        rows.append([f"{name} contents", contents if padding is None else f"{contents}, {padding:.1%} token padding"])
    for name, words in (("peak_memory_bytes", "process"), ("device_peak_memory_bytes", "device")):
        if name in figures:
            rows.append([f"peak memory of the {words}", f"{figures[name] / 1e9:,.2f} GB"])
    return rows + _operation_rows(figures, profile.about.get("precision", ""))


def _operation_rows(figures: Mapping[str, float], precision: str) -> list[list[object]]:
    if "matrix_peak_share" not in figures:
        return []
    rate, peak = figures["operations_per_second"], figures["matrix_peak_operations_per_second"]
    share = f"{rate / 1e9:,.1f} of {peak / 1e9:,.1f} GFLOP/s ({precision}), {figures['matrix_peak_share']:.1%}"
    each = f"{figures['operations_per_target'] / 1e6:,.2f} MFLOP"
    return [["matrix operations per target", each], ["share of the matrix peak", share]]
