"""Which peers there are, and what each needs."""

from __future__ import annotations

from dataclasses import dataclass

TORCH = "torch>=2.11"


@dataclass(frozen=True)
class Peer:
    """Something to be measured against.

    Args:
        title: name in tables.
        runner: module of ``peers.runners`` that runs it; None for mmrec's own baselines, which need no process.
        variant: what the runner is to run.
        requirements: what pip installs into its environment; none means mmrec's own environment, of which it uses numpy alone.
        contents: whether it reads the items' vectors.
        refitted: whether its last fit includes validation's targets, because it answers only users it was fitted on.
    """

    title: str
    runner: str | None
    variant: str
    requirements: tuple[str, ...] = ()
    contents: bool = False
    refitted: bool = False


RECTOOLS = ("rectools[torch]==0.19.0", TORCH)
CORNAC = ("cornac==3.0.1", TORCH)
MULTIMODAL_RECOMMENDER = ("multimodal-recommender[torch]==0.1.2",)
RECBOLE = ("recbole==1.2.1", "setuptools<81", "numpy==1.26.4", "pandas<2.3", "scipy<1.14")

PEERS: dict[str, Peer] = {
    "popularity": Peer("popularity", None, "popularity"),
    "co-occurrence": Peer("co-occurrence", None, "co-occurrence"),
    "transitions": Peer("transitions", None, "transitions"),
    "content-knn": Peer("content-kNN", None, "content-kNN", contents=True),
    "content-knn-text": Peer("content-kNN, text", None, "content-kNN (text)", contents=True),
    "content-knn-image": Peer("content-kNN, image", None, "content-kNN (image)", contents=True),
    "ease": Peer("EASE", "ease", "ease"),
    "rectools-sasrec": Peer("RecTools SASRec", "rectools", "sasrec", RECTOOLS),
    "rectools-hstu": Peer("RecTools HSTU", "rectools", "hstu", RECTOOLS),
    "rectools-esasrec": Peer("RecTools eSASRec", "rectools", "esasrec", RECTOOLS),
    "recbole-gru4rec": Peer("RecBole GRU4Rec", "recbole", "gru4rec", RECBOLE),
    "cornac-vbpr": Peer("Cornac VBPR", "cornac", "vbpr", CORNAC, contents=True, refitted=True),
    "multimodal-recommender-bm3": Peer(
        "multimodal-recommender BM3",
        "multimodal_recommender",
        "bm3",
        MULTIMODAL_RECOMMENDER,
        contents=True,
        refitted=True,
    ),
    "multimodal-recommender-knn": Peer(
        "multimodal-recommender MultiModalItemKNN",
        "multimodal_recommender",
        "knn",
        MULTIMODAL_RECOMMENDER,
        contents=True,
    ),
}
