"""Requests to web servers: origins, credentials, attempts, and what a failure is in words."""
