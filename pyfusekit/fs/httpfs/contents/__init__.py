"""The bytes of a file: one version of it, by ranges, from a spool or as it comes by."""
