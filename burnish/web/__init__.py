"""Pages for people: those who label, those who watch, and those who run things. No torch until a model is asked."""
