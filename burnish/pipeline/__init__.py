"""The pipeline: the stages in order, and what joins the rooms."""
