"""Web pages for annotators, viewers and admins; they load torch only to query a model."""
