"""Running a trained model: over a catalogue, over histories, over requests and over posts it has never seen."""
