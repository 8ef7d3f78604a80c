"""Entities and relations of annotated texts: read, aligned, counted at each level."""
