"""The papers' analyses: what methods cost in time, what they change, what their texts get wrong; one a file."""
