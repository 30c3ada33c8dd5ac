"""The only place that knows the whole story of an instance."""
