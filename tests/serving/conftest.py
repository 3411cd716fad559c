"""Fixtures of the service's tests."""

from tests.serving.served import pair, serve, served_vectors, server

__all__ = ["pair", "serve", "served_vectors", "server"]
