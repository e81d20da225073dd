"""Everything that reads audio and its metadata: one module per data set, tasks, selection, audio store, batches."""
