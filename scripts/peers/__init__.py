"""Peers of mmrec on the very split files of a prepared feed, each in an environment of its own, judged by one ruler."""
