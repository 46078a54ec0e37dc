"""What the charts and HTML reports of every verb share."""
