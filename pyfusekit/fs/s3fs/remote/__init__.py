"""The object store: its protocol, and the requests that make it one. Knows buckets and keys, no paths and no kernel."""
