"""The one door to the kernel and to programs.  Synchronous, except `run.arun`; no policy."""
