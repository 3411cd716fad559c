"""Encoders: content of one modality to token vectors, cut into a frozen trunk and live blocks."""
