"""What embeddings look like: maps in the plane, drift, similarity of encoders."""
