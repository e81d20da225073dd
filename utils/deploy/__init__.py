"""An encoder outside of its run: sounds to embeddings, and the folder in which it leaves."""
