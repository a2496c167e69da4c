"""The frozen CLIP and everything that is learned beside it."""
