"""What a submission consists of: the packed program and the gates."""
