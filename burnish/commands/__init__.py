"""What commands do on an existing run or label store. They print nothing."""
