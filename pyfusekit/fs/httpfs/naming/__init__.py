"""What is known of the source: its directories in rows, read from listings, revalidated, kept on disk."""
