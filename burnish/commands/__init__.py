"""Work of the commands on a run, a configuration or a label store; nothing here prints."""
