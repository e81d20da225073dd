"""The report as a page: one HTML file with all of its figures, clips and scripts in it."""
