"""A feed drawn and written from a known truth: posts, tastes, clicks, pictures, captions, and the best possible ranker."""
