"""What policy and reference say about a batch: the path of the head, the layout of rows, the numbers of a pair."""
