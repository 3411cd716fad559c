"""Preprocessing: captions to token ids, pictures to pixels, the same for training, scoring and export."""
