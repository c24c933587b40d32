"""Where labels come from besides imports and rehearsals: AI judges, people, vendors."""
