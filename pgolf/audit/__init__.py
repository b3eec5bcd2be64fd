"""The audit: a referee over runs of ours and over folders of somebody else's."""
