"""Label sources other than imports and rehearsals: AI judges, people and vendors."""
