"""One image in both isolations, measured side by side, through the client only.

`workload` puts the probe into the image and drives instances, `measure` takes the figures, `report` shows
them, `command` is `insula compare`.  The engine's inside is never looked at, so that any Docker-API engine
can be a column.
"""
