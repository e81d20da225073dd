"""Metrics, tables and figures of evaluations, and the report that compares them."""
