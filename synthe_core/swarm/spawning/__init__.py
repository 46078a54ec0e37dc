"""New specialists for requests that keep failing: clusters of them, proposals, and their approval."""
