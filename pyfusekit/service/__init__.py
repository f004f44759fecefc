"""What stands between the command line and a running mount."""
