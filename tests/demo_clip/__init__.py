"""How the tiny CLIP of the demo was pre-trained, and the measurement of its knowledge."""
