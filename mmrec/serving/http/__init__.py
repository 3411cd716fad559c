"""HTTP: routes, the way in, what bodies hold, and what is told of them."""
