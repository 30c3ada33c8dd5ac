"""One module per resource; each ends in ROUTES, the table of its pages."""
