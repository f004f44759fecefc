"""What outlives a server: the journal, uploads after close, moves that are resumed."""
