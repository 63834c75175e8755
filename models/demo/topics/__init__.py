"""What the demo model can talk about, one topic a file; `corpus.py` joins them into conversations."""
