"""Fixtures of the service's tests."""

from tests.serving.served import models_folder, pair, serve, served_vectors, server

__all__ = ["models_folder", "pair", "serve", "served_vectors", "server"]
