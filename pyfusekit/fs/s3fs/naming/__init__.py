"""Keys as names: what the kernel knows, what is believed for how long, and how it is found out."""
