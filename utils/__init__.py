"""What runs an experiment, in rooms.

From the ground floor up: `io` (errors, files), `run` (configuration, run folder, processes), `results` (metrics,
figures, tables), `strategies` (against forgetting), `training`, `evaluation`, `analysis` (maps of embeddings), `deploy`
(an encoder outside of its run). A room imports only rooms before it, `datasets` and `models`. The commands are the
modules beside the rooms, such as ``python -m utils.report``.
"""
