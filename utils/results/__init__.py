"""What results are: metrics, tables, figures, the report."""
