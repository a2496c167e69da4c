"""How the demo's CLIP was pre-trained, and what it knew before the demo; run by hand."""
