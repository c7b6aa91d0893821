"""What a network sees: attention, receptive fields, features, and what a prediction rests on."""
