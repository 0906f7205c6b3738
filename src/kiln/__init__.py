"""kiln: builds, checks and upgrades the node images of Deep Learning on QingCloud AppCenter."""
