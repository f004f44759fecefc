"""What is written, until it is an object: staged, planned, sent, published on a condition."""
