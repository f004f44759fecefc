"""What an object's metadata mean as modes, owners, times and xattrs, and the index that remembers them."""
