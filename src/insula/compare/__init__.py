"""One image in both isolations, measured side by side, through the client only."""
