"""Jobs: what main.py runs. Everything about files, seeds and batches ends here."""
